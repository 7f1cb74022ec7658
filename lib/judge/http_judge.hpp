#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "judge/circuit_breaker.hpp"
#include "judge/http_client.hpp"
#include "judge/template.hpp"
#include "reward/scorer.hpp"

namespace atelier::judge {

struct HttpJudgeConfig {
    std::string url;    ///< of the API ("http://host:8000/v1"); /chat/completions is added
    std::string model;  ///< name that the server knows the judge by
    double temperature = 0;
    int top_logprobs = 20;  ///< asked for at each token; 0: none, scores are read from the text
    int retries = 2;        ///< further attempts at a question
    double backoff_seconds = 0.5;  ///< before the first repetition, doubled each time, with jitter
    double longest_wait_seconds = 60;  ///< of any wait; a longer Retry-After fails the question
    std::uint64_t seed = 0;
    HttpConfig http;
    CircuitBreaker::Config breaker;
};

/// Asks an OpenAI-compatible server (vLLM, SGLang) for each dimension's verdict: one chat completion
/// a dimension, all of a sample's at once, pictures over white as PNG data URLs. `templates` by
/// kind. A question that fails is asked again (answers of another form too, with another seed); a
/// sample of which any dimension has no verdict fails with every reason, and the key stands in none
/// of them. Throws Error(usage) for a URL that is none, or holds a user or password.
std::unique_ptr<reward::Scorer> make_http_judge(
    const HttpJudgeConfig& config, std::map<std::string, std::vector<Template>> templates);

}  // namespace atelier::judge
