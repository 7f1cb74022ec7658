// What the runtime, cuBLASLt and cuDNN do for the backend, done by the host: memory, products in fp32 of (rounded) operands, dense
// attention. Under the emulator the rest of the backend is its own source.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/convert.hpp"
#include "core/error.hpp"
#include "emulator/block_emulator.hpp"
#include "emulator/stalled.hpp"
#include "ops/cuda/context.hpp"
#include "ops/cuda/cudnn_convolution.hpp"
#include "ops/cuda/dense_attention.hpp"
#include "ops/cuda/device_memory.hpp"
#include "ops/cuda/functions.hpp"
#include "ops/cuda/open_device.hpp"
#include "ops/cuda/products.hpp"

namespace emulator {
namespace {

std::atomic<bool> stalled = false;

void wait_for_the_stream() {
    while (stalled) std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

}  // namespace

void stall() { stalled = true; }

}  // namespace emulator

namespace atelier::ops::cuda {
namespace {

class Memory final : public DeviceMemory {
  public:
    void* allocate(std::size_t bytes) override {
        not_recorded("an allocation");
        void* taken = emulator::allocate(bytes, false);
        zero(taken, bytes);
        taken_ += sizes_[taken] = bytes;
        peak_ = std::max(peak_, taken_);
        return taken;
    }
    std::size_t peak_bytes() const override { return peak_; }
    void* allocate_shared(std::size_t bytes) override { return emulator::allocate(bytes, true); }
    void release(void* memory) override {
        emulator::release(memory);
        if (const auto found = sizes_.find(memory); found != sizes_.end()) {
            taken_ -= found->second;
            sizes_.erase(found);
        }
    }
    void to_device(void* device, const void* host, std::size_t bytes) override {
        not_recorded("a copy from host memory");
        emulator::check_device_address(device);
        move(device, host, bytes);
    }
    void to_host(void* host, const void* device, std::size_t bytes) override {
        not_recorded("a copy to host memory");
        emulator::check_device_address(device);
        emulator::wait_for_the_stream();
        move(host, device, bytes);
    }
    void within(void* to, const void* from, std::size_t bytes) override {
        for (const void* each : {static_cast<const void*>(to), from}) emulator::check_device_address(each);
        emulator::queue([=] { move(to, from, bytes); });
    }
    void zero(void* device, std::size_t bytes) override {
        emulator::check_device_address(device);
        emulator::queue([=] {
            const emulator::Access access;
            std::memset(device, 0, bytes);
        });
    }
    void synchronise() override {
        not_recorded("waiting");
        emulator::wait_for_the_stream();
    }

    // Copies beside the computation come as late as the calls that order them allow: uploads when the computation waits for them,
    // downloads when uploads do or they are waited for.
    void pin(void*, std::size_t) override {}
    void unpin(void*) override {}
    void start_upload(void* device, const void* pinned, std::size_t bytes) override {
        ATELIER_CHECK(uploads_ordered_ == emulator::launches(), "an upload that doesn't wait for what was computed");
        uploads_.push_back({device, pinned, bytes});
    }
    void start_download(void* pinned, const void* device, std::size_t bytes) override {
        ATELIER_CHECK(ordered_ == emulator::launches(), "a download that doesn't wait for what was computed");
        downloads_.push_back({pinned, device, bytes});
    }
    void compute_after_uploads() override { run(uploads_); }
    void downloads_after_compute() override { ordered_ = emulator::launches(); }
    void uploads_after_compute() override { uploads_ordered_ = emulator::launches(); }
    void uploads_after_downloads() override {
        run(downloads_);
        uploads_ordered_ = ordered_;
    }
    void finish_downloads() override { run(downloads_); }

  private:
    struct Copy {
        void* to;
        const void* from;
        std::size_t bytes;
    };
    static void not_recorded(const char* what) { ATELIER_CHECK(!emulator::is_recording(), "{} while a graph is recorded", what); }
    static void run(std::vector<Copy>& copies) {
        for (const Copy& c : copies) move(c.to, c.from, c.bytes);
        copies.clear();
    }
    std::map<void*, std::size_t> sizes_;
    std::size_t taken_ = 0, peak_ = 0;
    std::vector<Copy> uploads_, downloads_;
    std::int64_t ordered_ = -1, uploads_ordered_ = -1;  ///< launches that downloads, and uploads, wait for
    static void move(void* to, const void* from, std::size_t bytes) {
        const emulator::Access access;
        std::memcpy(to, from, bytes);
    }
};

/// Column-major element (i, j) of op(X).
struct Matrix {
    const void* data;
    std::int64_t stride;
    bool transposed, bf16;
    float at(std::int64_t i, std::int64_t j) const {
        const std::int64_t at = transposed ? j + i * stride : i + j * stride;
        return bf16 ? bf16_to_f32(static_cast<const std::uint16_t*>(data)[at]) : static_cast<const float*>(data)[at];
    }
};

/// What a library is given: cuDNN refuses other addresses, and cuBLASLt was promised these.
void check_operands(std::initializer_list<const void*> addresses) {
    for (const void* each : addresses) emulator::check_device_address(each, 16);
}

double value(std::uint16_t bits) { return bf16_to_f32(bits); }
std::uint16_t rounded(double v) { return f32_to_bf16(static_cast<float>(v)); }

/// Where a token's head starts: of queries, of keys.
std::int64_t q_at(const DenseAttention& s, std::int64_t stride, std::int64_t b, std::int64_t i, std::int64_t h) {
    return (b * s.entry_queries + i) * stride + h * s.head_dim;
}
std::int64_t kv_at(const DenseAttention& s, std::int64_t tokens, std::int64_t stride, std::int64_t b, std::int64_t j, std::int64_t h) {
    return (b * tokens + j) * stride + h / (s.heads / s.kv_heads) * s.head_dim;
}
std::int64_t kv_at(const DenseAttention& s, std::int64_t b, std::int64_t j, std::int64_t h) { return kv_at(s, s.entry_keys, s.kv_stride, b, j, h); }
std::int64_t visible(const DenseAttention& s, std::int64_t i) { return s.causal ? s.keys - s.queries + i + 1 : s.keys; }

double dot(const DenseAttention& s, const std::uint16_t* a, const std::uint16_t* b) {
    double sum = 0;
    for (std::int64_t c = 0; c < s.head_dim; ++c) sum += value(a[c]) * value(b[c]);
    return sum;
}

}  // namespace

const char* open_device() {
    if (const char* word = std::getenv("ATELIER_EMULATOR_SCHEDULE")) {
        const std::string schedule = word;
        ATELIER_CHECK_USAGE(schedule == "ascending" || schedule == "descending" || schedule == "shuffled",
                            "ATELIER_EMULATOR_SCHEDULE must be ascending, descending or shuffled, found \"{}\"", schedule);
        emulator::set_schedule(schedule == "ascending"    ? emulator::Schedule::ascending
                               : schedule == "descending" ? emulator::Schedule::descending
                                                          : emulator::Schedule::shuffled);
    }
    return "emulator";
}

void* compute_stream() { return nullptr; }

DeviceMemory& memory() {
    static Memory instance;
    return instance;
}

namespace {

/// Work and the scratch memory that it was given.
struct Graph {
    std::vector<std::function<void()>> work;
    std::vector<void*> scratch;
};
std::vector<void*> recorded_scratch;

}  // namespace

void* record_graph(const std::function<void()>& work) {
    recorded_scratch.clear();
    emulator::Recording recording;
    work();
    auto graph = std::make_unique<Graph>();
    graph->work = recording.take();
    graph->scratch = std::move(recorded_scratch);
    return graph.release();
}
bool launch_graph(void* graph) {
    for (const auto& work : static_cast<Graph*>(graph)->work) work();
    return true;
}
void release_graph(void* graph) {
    const std::unique_ptr<Graph> g(static_cast<Graph*>(graph));
    for (void* taken : g->scratch) emulator::release(taken);
}

void* scratch(std::size_t bytes) {
    if (emulator::is_recording()) return recorded_scratch.emplace_back(emulator::allocate(bytes, false));
    static void* taken = nullptr;
    if (taken != nullptr) emulator::release(taken);
    return taken = emulator::allocate(bytes, false);  // poisoned each time: what an earlier operation left must not be used
}

void* library_scratch(std::size_t bytes) { return scratch(bytes); }

namespace {

void product_now(const Product& p, float alpha, const void* a, const void* b, float beta, void* d, const float* bias) {
    const emulator::Access access;
    const Matrix x{a, p.lda, p.transpose_a, p.bf16}, y{b, p.ldb, p.transpose_b, p.bf16};
    std::vector<float> row(static_cast<std::size_t>(p.k));
    for (std::int64_t i = 0; i < p.m; ++i) {
        for (std::int64_t l = 0; l < p.k; ++l) row[static_cast<std::size_t>(l)] = x.at(i, l);
        for (std::int64_t j = 0; j < p.n; ++j) {
            float sum = 0;
            for (std::int64_t l = 0; l < p.k; ++l) sum = std::fma(row[static_cast<std::size_t>(l)], y.at(l, j), sum);
            const std::int64_t at = i + j * p.ldd;
            auto* bits = static_cast<std::uint16_t*>(d) + at;
            float* number = static_cast<float*>(d) + at;
            const float before = beta == 0.0f ? 0.0f : beta * (p.rounds_result ? bf16_to_f32(*bits) : *number);
            const float result = alpha * sum + before + (bias != nullptr ? bias[i] : 0.0f);
            if (p.rounds_result) *bits = f32_to_bf16(result);
            else *number = result;
        }
    }
}

void dense_attention_now(const DenseAttention& s, const std::uint16_t* q, const std::uint16_t* k, const std::uint16_t* v, std::uint16_t* out,
                         float* stats) {
    const emulator::Access access;
    std::vector<double> weights(static_cast<std::size_t>(s.keys));
    for (std::int64_t b = 0; b < s.batch; ++b)
        for (std::int64_t h = 0; h < s.heads; ++h)
            for (std::int64_t i = 0; i < s.queries; ++i) {
                const std::int64_t count = visible(s, i);
                double top = -INFINITY, sum = 0;
                for (std::int64_t j = 0; j < count; ++j) {
                    weights[static_cast<std::size_t>(j)] = dot(s, q + q_at(s, s.q_stride, b, i, h), k + kv_at(s, b, j, h)) * s.scale;
                    top = std::max(top, weights[static_cast<std::size_t>(j)]);
                }
                for (std::int64_t j = 0; j < count; ++j) sum += weights[static_cast<std::size_t>(j)] = std::exp(weights[static_cast<std::size_t>(j)] - top);
                stats[(b * s.heads + h) * s.queries + i] = static_cast<float>(top + std::log(sum));
                for (std::int64_t c = 0; c < s.head_dim; ++c) {
                    double total = 0;
                    for (std::int64_t j = 0; j < count; ++j)
                        total += weights[static_cast<std::size_t>(j)] / sum * value(v[kv_at(s, b, j, h) + c]);
                    out[q_at(s, s.out_stride, b, i, h) + c] = rounded(total);
                }
            }
}

}  // namespace

void run_product(const Product& p, float alpha, const void* a, const void* b, float beta, void* d, const float* bias) {
    check_operands({a, b, d});
    emulator::check_device_address(bias);
    emulator::queue([=] { product_now(p, alpha, a, b, beta, d, bias); });
}

void dense_attention(const DenseAttention& s, const std::uint16_t* q, const std::uint16_t* k, const std::uint16_t* v, std::uint16_t* out,
                     float* stats) {
    check_operands({q, k, v, out, stats});
    emulator::queue([=] { dense_attention_now(s, q, k, v, out, stats); });
}

void dense_attention_backward(const DenseAttention& s, const std::uint16_t* q, const std::uint16_t* k, const std::uint16_t* v,
                              const std::uint16_t* out, const float* stats, const std::uint16_t* dout, std::uint16_t* dq, std::uint16_t* dk,
                              std::uint16_t* dv, std::span<std::byte> room) {
    check_operands({q, k, v, out, stats, dout, dq, dk, dv});
    const emulator::Access access;
    // As the library: none for a query with a key.
    ATELIER_CHECK(s.queries > 1 || s.keys > 1, "the gradient of attention of one query with one key");
    std::ranges::fill(room, std::byte{0xff});
    const std::int64_t kv_width = s.kv_heads * s.head_dim;
    std::vector<double> k_sums(static_cast<std::size_t>(s.batch * s.keys * kv_width)), v_sums(k_sums.size());
    for (std::int64_t b = 0; b < s.batch; ++b)
        for (std::int64_t h = 0; h < s.heads; ++h)
            for (std::int64_t i = 0; i < s.queries; ++i) {
                const std::int64_t query = q_at(s, s.q_stride, b, i, h), at = q_at(s, s.q_gradient_stride, b, i, h);
                const double delta = dot(s, dout + at, out + q_at(s, s.out_stride, b, i, h)), lse = stats[(b * s.heads + h) * s.queries + i];
                std::vector<double> q_sums(static_cast<std::size_t>(s.head_dim));
                for (std::int64_t j = 0; j < visible(s, i); ++j) {
                    const std::int64_t key = kv_at(s, b, j, h), to = kv_at(s, s.keys, kv_width, b, j, h);
                    const double weight = std::exp(dot(s, q + query, k + key) * s.scale - lse);
                    const double slope = weight * (dot(s, dout + at, v + key) - delta) * s.scale;
                    for (std::int64_t c = 0; c < s.head_dim; ++c) {
                        q_sums[static_cast<std::size_t>(c)] += slope * value(k[key + c]);
                        k_sums[static_cast<std::size_t>(to + c)] += slope * value(q[query + c]);
                        v_sums[static_cast<std::size_t>(to + c)] += weight * value(dout[at + c]);
                    }
                }
                for (std::int64_t c = 0; c < s.head_dim; ++c) dq[at + c] = rounded(q_sums[static_cast<std::size_t>(c)]);
            }
    for (std::int64_t i = 0; i < std::ssize(k_sums); ++i) {
        const std::int64_t at = i / kv_width * s.kv_gradient_stride + i % kv_width;
        dk[at] = rounded(k_sums[static_cast<std::size_t>(i)]);
        dv[at] = rounded(v_sums[static_cast<std::size_t>(i)]);
    }
}

namespace {

/// Calls f(out pixel's number, in pixel's number, tap) for each tap that lies in the picture.
template <typename Function>
void each_tap(const ConvolutionShape& s, Function f) {
    ATELIER_CHECK(s.pad_begin == s.pad_end, "zeros of {} before and {} behind a row", s.pad_begin, s.pad_end);  // as the library
    for (std::int64_t y = 0; y < s.out_height(); ++y)
        for (std::int64_t x = 0; x < s.out_width(); ++x)
            for (std::int64_t tap = 0; tap < s.kernel * s.kernel; ++tap) {
                const std::int64_t r = y * s.stride + tap / s.kernel - s.pad_begin, c = x * s.stride + tap % s.kernel - s.pad_begin;
                if (r >= 0 && r < s.height && c >= 0 && c < s.width) f((y * s.out_width() + x), r * s.width + c, tap);
            }
}

}  // namespace

void run_convolution(const ConvolutionShape& s, const float* in, const float* weights, float* out) {
    check_operands({in, weights, out});
    const emulator::Access access;
    std::fill_n(out, s.out_height() * s.out_width() * s.out_channels, 0.0f);
    each_tap(s, [&](std::int64_t to, std::int64_t from, std::int64_t tap) {
        for (std::int64_t o = 0; o < s.out_channels; ++o)
            for (std::int64_t i = 0; i < s.in_channels; ++i)
                out[to * s.out_channels + o] +=
                    in[from * s.in_channels + i] * weights[(o * s.kernel * s.kernel + tap) * s.in_channels + i];
    });
}

void run_convolution_input_gradient(const ConvolutionShape& s, const float* weights, const float* d_out, float* d_in) {
    check_operands({weights, d_out, d_in});
    const emulator::Access access;
    std::fill_n(d_in, s.height * s.width * s.in_channels, 0.0f);
    each_tap(s, [&](std::int64_t to, std::int64_t from, std::int64_t tap) {
        for (std::int64_t o = 0; o < s.out_channels; ++o)
            for (std::int64_t i = 0; i < s.in_channels; ++i)
                d_in[from * s.in_channels + i] +=
                    d_out[to * s.out_channels + o] * weights[(o * s.kernel * s.kernel + tap) * s.in_channels + i];
    });
}

void run_convolution_weight_gradient(const ConvolutionShape& s, const float* in, const float* d_out, float* d_weights) {
    check_operands({in, d_out, d_weights});
    const emulator::Access access;
    std::fill_n(d_weights, s.out_channels * s.kernel * s.kernel * s.in_channels, 0.0f);
    each_tap(s, [&](std::int64_t to, std::int64_t from, std::int64_t tap) {
        for (std::int64_t o = 0; o < s.out_channels; ++o)
            for (std::int64_t i = 0; i < s.in_channels; ++i)
                d_weights[(o * s.kernel * s.kernel + tap) * s.in_channels + i] += d_out[to * s.out_channels + o] * in[from * s.in_channels + i];
    });
}

}  // namespace atelier::ops::cuda
