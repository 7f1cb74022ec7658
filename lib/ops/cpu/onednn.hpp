#pragma once

#include <dnnl.hpp>
#include <dnnl_version.h>
#include <omp.h>

// What the operations that go through oneDNN share.
namespace atelier::ops::cpu {

inline const dnnl::engine& engine() {
    static const dnnl::engine instance(dnnl::engine::kind::cpu, 0);
    return instance;
}

/// oneDNN would start OpenMP threads of its own: one thread per call, wherever the call comes from.
inline void use_one_thread() {
    thread_local const bool once = (omp_set_num_threads(1), true);
    static_cast<void>(once);
}

/// The calling thread's stream.
inline dnnl::stream& stream() {
    thread_local dnnl::stream instance(engine());
    return instance;
}

inline dnnl::memory::desc plain(const dnnl::memory::dims& dims, dnnl::memory::format_tag tag) {
    return {dims, dnnl::memory::data_type::f32, tag};
}

/// Memory that somebody else owns.
inline dnnl::memory view(const dnnl::memory::desc& description, const float* data) {
    return {description, engine(), const_cast<float*>(data)};
}

}  // namespace atelier::ops::cpu
