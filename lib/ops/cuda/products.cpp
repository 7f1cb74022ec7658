#include "ops/cuda/products.hpp"

#include <cublasLt.h>

#include <map>
#include <tuple>

#include "ops/cuda/context.hpp"
#include "ops/cuda/device_memory.hpp"

namespace atelier::ops::cuda {
namespace {

// What the library may use for partial results; the same for every product, since the choice of algorithm depends on it.
constexpr std::size_t workspace_bytes = std::size_t{64} << 20;

void check_cublas(cublasStatus_t status, const char* what) {
    ATELIER_CHECK(status == CUBLAS_STATUS_SUCCESS, "cuBLASLt: {} failed: {}", what, cublasLtGetStatusString(status));
}

cublasLtHandle_t handle() {
    static const cublasLtHandle_t instance = [] {
        cublasLtHandle_t made = nullptr;
        check_cublas(cublasLtCreate(&made), "cublasLtCreate");
        return made;
    }();
    return instance;
}

void* workspace() {
    static void* const instance = memory().allocate(workspace_bytes);
    return instance;
}

/// A product's description and the algorithm that it keeps.
class Plan {
  public:
    /// `bias`: the choice of algorithm depends on how its address is aligned.
    Plan(const Product& p, const float* bias) {
        const cudaDataType_t type = p.bf16 ? CUDA_R_16BF : CUDA_R_32F;
        check_cublas(cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
        const cublasOperation_t a = p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, b = p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
        set(CUBLASLT_MATMUL_DESC_TRANSA, a);
        set(CUBLASLT_MATMUL_DESC_TRANSB, b);
        if (p.has_bias) set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
        if (p.has_bias) set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_32F);
        if (p.has_bias) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
        check_cublas(cublasLtMatrixLayoutCreate(&a_, type, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, p.lda), "a layout");
        check_cublas(cublasLtMatrixLayoutCreate(&b_, type, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, p.ldb), "a layout");
        check_cublas(cublasLtMatrixLayoutCreate(&d_, p.rounds_result ? CUDA_R_16BF : CUDA_R_32F, p.m, p.n, p.ldd), "a layout");
        cublasLtMatmulPreference_t preference = nullptr;
        check_cublas(cublasLtMatmulPreferenceCreate(&preference), "a preference");
        check_cublas(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes,
                                                          sizeof(workspace_bytes)),
                     "a preference");
        // Partial results are fp32 in the workspace. Added where they lie their order would be the library's to keep; of a rounded result they
        // would be rounded too.
        const std::uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
        check_cublas(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions,
                                                          sizeof(reductions)),
                     "a preference");
        // Addresses are not part of a product, its algorithm must not ask for more than every operand has.
        const std::uint32_t alignment = 16;
        for (const auto which : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                                 CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
            check_cublas(cublasLtMatmulPreferenceSetAttribute(preference, which, &alignment, sizeof(alignment)), "a preference");
        cublasLtMatmulHeuristicResult_t result;
        int found = 0;
        const cublasStatus_t status =
            cublasLtMatmulAlgoGetHeuristic(handle(), operation_, a_, b_, d_, d_, preference, 1, &result, &found);
        cublasLtMatmulPreferenceDestroy(preference);
        ATELIER_CHECK(status == CUBLAS_STATUS_SUCCESS && found == 1, "cuBLASLt has no algorithm for a product {} x {} x {} ({}): {}", p.m, p.n,
                      p.k, p.bf16 ? "bf16" : "fp32", cublasLtGetStatusString(status));
        algorithm_ = result.algo;
    }
    Plan(const Plan&) = delete;

    void run(float alpha, const void* a, const void* b, float beta, void* d, const float* bias) {
        if (bias != nullptr) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
        check_cublas(cublasLtMatmul(handle(), operation_, &alpha, a, a_, b, b_, &beta, d, d_, d, d_, &algorithm_, workspace(), workspace_bytes,
                                    stream()),
                     "cublasLtMatmul");
    }

  private:
    template <typename T>
    void set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
        check_cublas(cublasLtMatmulDescSetAttribute(operation_, attribute, &value, sizeof(value)), "a product's attribute");
    }
    // Kept to the end of the process, with the map below.
    cublasLtMatmulDesc_t operation_ = nullptr;
    cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, d_ = nullptr;
    cublasLtMatmulAlgo_t algorithm_{};
};

using Key = std::tuple<bool, bool, bool, bool, bool, std::uintptr_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>;

}  // namespace

void run_product(const Product& p, float alpha, const void* a, const void* b, float beta, void* d, const float* bias) {
    stream();  // a thread's first call chooses its device, which the library's go to
    static std::map<Key, Plan> plans;
    const Key key{p.transpose_a, p.transpose_b, p.bf16, p.rounds_result, p.has_bias, reinterpret_cast<std::uintptr_t>(bias) % 16, p.m, p.n, p.k, p.lda, p.ldb, p.ldd};
    auto found = plans.find(key);
    if (found == plans.end()) found = plans.try_emplace(key, p, bias).first;
    found->second.run(alpha, a, b, beta, d, bias);
}

}  // namespace atelier::ops::cuda
