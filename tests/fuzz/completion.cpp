// What a judge's server answers: a score is one of the scale, with a reason, or there is none.
#include "core/json.hpp"
#include "fuzz/target.hpp"
#include "judge/answer.hpp"

namespace atelier::fuzz {

void run_one(std::span<const std::uint8_t> bytes) {
    static const judge::Template asked = [] {
        judge::Template t;
        t.dimension = "alignment";
        t.may_not_apply = true;
        return t;
    }();
    read_or_refuse([&] {
        const auto verdict = judge::read_completion(asked, parse_json(as_text(bytes), "answer"));
        if (verdict.present && !(verdict.score >= 1 && verdict.score <= 5 && !verdict.reason.empty())) std::abort();
    });
}

}  // namespace atelier::fuzz
