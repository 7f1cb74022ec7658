#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "reward/pool.hpp"

// What generators and judge ranks say to each other, as CBOR.
namespace atelier::reward {

/// `open`: scoring is about to begin; answered by `opened` once the scorer is there. `request`: a sample; answered by `outcome` with
/// the same ticket. `stop`: a judge saw the signal that asks the stage to end. `close`: this generator asks for nothing more.
enum class MessageKind : std::uint8_t { open, opened, request, outcome, stop, close };

using Dimensions = std::map<std::string, std::vector<std::string>>;  ///< of each kind of prompt, lowest tier first

struct Message {
    MessageKind kind = MessageKind::open;
    std::uint64_t ticket = 0;  ///< request, outcome
    Request request;
    Outcome outcome;
    Dimensions dimensions;  ///< opened
    int exit_code = 0;      ///< close: what the generator's stage ended with
};

std::vector<std::byte> encode(const Message& message);
/// The numbers are those that were encoded, to the bit. Throws Error(internal) for what encode() didn't make.
Message decode(const std::vector<std::byte>& bytes);

}  // namespace atelier::reward
