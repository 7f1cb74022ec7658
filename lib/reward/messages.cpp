#include "reward/messages.hpp"

#include <nlohmann/json.hpp>

#include "core/error.hpp"

namespace atelier::reward {
namespace {

using Json = nlohmann::json;

Json to_json(const Request& r) {
    Json sources = Json::array();
    if (r.sources)
        for (const io::Image& image : *r.sources)
            sources.push_back({image.width, image.height, image.channels, Json::binary(image.pixels)});
    return {{"sample", r.sample_id},
            {"kind", r.kind},
            {"attributes", r.attributes},
            {"size", {r.height, r.width}},
            {"picture", Json::binary(r.picture)},
            {"prompt", r.prompt},
            {"sources", std::move(sources)},
            {"key", {r.noise_key.low, r.noise_key.high}}};
}

Request request_of(const Json& j) {
    Request r;
    r.sample_id = j.at("sample").get<std::uint64_t>();
    r.kind = j.at("kind").get<std::string>();
    r.attributes = j.at("attributes").get<std::string>();
    r.height = j.at("size").at(0).get<std::int64_t>();
    r.width = j.at("size").at(1).get<std::int64_t>();
    r.picture = j.at("picture").get_binary();
    r.prompt = j.at("prompt").get<std::string>();
    auto sources = std::make_shared<std::vector<io::Image>>();
    for (const Json& s : j.at("sources")) {
        io::Image image;
        image.width = s.at(0).get<int>();
        image.height = s.at(1).get<int>();
        image.channels = s.at(2).get<int>();
        image.pixels = s.at(3).get_binary();
        sources->push_back(std::move(image));
    }
    r.sources = std::move(sources);
    r.noise_key = {j.at("key").at(0).get<std::uint64_t>(), j.at("key").at(1).get<std::uint64_t>()};
    return r;
}

Json to_json(const Outcome& o) {
    Json verdicts = Json::object();
    for (const auto& [name, v] : o.verdicts) verdicts[name] = {v.present, v.score, v.reason};
    return {{"verdicts", std::move(verdicts)}, {"failed", o.failed}, {"attempts", o.attempts}, {"seconds", o.seconds},
            {"begin", o.begin},                {"rank", o.rank},     {"worker", o.worker}};
}

Outcome outcome_of(const Json& j) {
    Outcome o;
    for (const auto& [name, v] : j.at("verdicts").items())
        o.verdicts[name] = {v.at(0).get<bool>(), v.at(1).get<double>(), v.at(2).get<std::string>()};
    o.failed = j.at("failed").get<bool>();
    o.attempts = j.at("attempts").get<int>();
    o.seconds = j.at("seconds").get<double>();
    o.begin = j.at("begin").get<double>();
    o.rank = j.at("rank").get<int>();
    o.worker = j.at("worker").get<int>();
    return o;
}

}  // namespace

std::vector<std::byte> encode(const Message& m) {
    Json j{{"kind", static_cast<int>(m.kind)}, {"ticket", m.ticket}};
    if (m.kind == MessageKind::request) j["request"] = to_json(m.request);
    if (m.kind == MessageKind::outcome) j["outcome"] = to_json(m.outcome);
    if (m.kind == MessageKind::opened) j["dimensions"] = m.dimensions;
    if (m.kind == MessageKind::close) j["exit_code"] = m.exit_code;
    std::vector<std::uint8_t> bytes;
    Json::to_cbor(j, bytes);
    const auto* begin = reinterpret_cast<const std::byte*>(bytes.data());
    return {begin, begin + bytes.size()};
}

Message decode(const std::vector<std::byte>& bytes) {
    try {
        const auto* begin = reinterpret_cast<const std::uint8_t*>(bytes.data());
        const Json j = Json::from_cbor(begin, begin + bytes.size());
        Message m;
        m.kind = static_cast<MessageKind>(j.at("kind").get<int>());
        m.ticket = j.at("ticket").get<std::uint64_t>();
        if (m.kind == MessageKind::request) m.request = request_of(j.at("request"));
        if (m.kind == MessageKind::outcome) m.outcome = outcome_of(j.at("outcome"));
        if (m.kind == MessageKind::opened) m.dimensions = j.at("dimensions").get<Dimensions>();
        if (m.kind == MessageKind::close) m.exit_code = j.at("exit_code").get<int>();
        return m;
    } catch (const Json::exception& e) {
        ATELIER_FAIL(ErrorKind::internal, "a message of {} bytes between generators and judges: {}", bytes.size(), e.what());
    }
}

}  // namespace atelier::reward
