#include "io/report/event_file.hpp"

#include <boost/crc.hpp>
#include <cstring>
#include <string_view>

namespace atelier::io {
namespace {

/// Protobuf's wire format.
enum class Wire : std::uint8_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

void put_varint(std::string& to, std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) to += static_cast<char>((value & 0x7F) | 0x80);
    to += static_cast<char>(value);
}

/// Little-endian, as every processor that we run on is.
template <typename T>
void put_fixed(std::string& to, T value) {
    char bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    to.append(bytes, sizeof(T));
}

void put_key(std::string& to, int field, Wire wire) { put_varint(to, (static_cast<std::uint64_t>(field) << 3) | static_cast<std::uint64_t>(wire)); }

void put_bytes(std::string& to, int field, std::string_view bytes) {
    put_key(to, field, Wire::bytes);
    put_varint(to, bytes.size());
    to += bytes;
}

/// Event.wall_time; what follows it is the caller's.
std::string event_at(double wall_time) {
    std::string event;
    put_key(event, 1, Wire::fixed64);
    put_fixed(event, wall_time);
    return event;
}

/// CRC-32C, rotated and moved so that the checksum of a file that holds checksums is not degenerate.
std::uint32_t masked_crc(std::string_view bytes) {
    boost::crc_optimal<32, 0x1EDC6F41, 0xFFFFFFFF, 0xFFFFFFFF, true, true> crc;
    crc.process_bytes(bytes.data(), bytes.size());
    const std::uint32_t value = crc.checksum();
    return ((value >> 15) | (value << 17)) + 0xA282EAD8;
}

void put_record(std::string& file, std::string_view event) {
    std::string length;
    put_fixed(length, static_cast<std::uint64_t>(event.size()));
    file += length;
    put_fixed(file, masked_crc(length));
    file += event;
    put_fixed(file, masked_crc(event));
}

}  // namespace

std::string event_file(std::span<const Scalar> scalars) {
    std::string file, first = event_at(scalars.empty() ? 0 : scalars.front().wall_time);
    put_bytes(first, 3, "brain.Event:2");  // Event.file_version
    put_record(file, first);
    std::string start, session = event_at(scalars.empty() ? 0 : scalars.front().wall_time);
    put_key(start, 1, Wire::varint);  // SessionLog.status
    put_varint(start, 1);             // START
    put_bytes(session, 7, start);     // Event.session_log
    put_record(file, session);
    for (const Scalar& s : scalars) {
        std::string value, summary, event = event_at(s.wall_time);
        put_bytes(value, 1, s.tag);  // Summary.Value.tag
        put_key(value, 2, Wire::fixed32);  // Summary.Value.simple_value
        put_fixed(value, static_cast<float>(s.value));
        put_bytes(summary, 1, value);  // Summary.value
        put_key(event, 2, Wire::varint);  // Event.step
        put_varint(event, static_cast<std::uint64_t>(s.step));
        put_bytes(event, 5, summary);  // Event.summary
        put_record(file, event);
    }
    return file;
}

}  // namespace atelier::io
