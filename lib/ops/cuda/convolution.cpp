#include "ops/convolution.hpp"

#include "ops/cuda/context.hpp"
#include "ops/cuda/cudnn_convolution.hpp"
#include "ops/cuda/functions.hpp"

// The models' weights are [out, in, kernel, kernel]; the library's are channels last, as the pictures. It has no fp32 algorithm for another
// number of zeros before a row than behind it: such pictures are copied into the middle of zeros first.
namespace atelier::ops::cuda {
namespace {

std::int64_t weight_count(const ConvolutionShape& s) { return s.out_channels * s.in_channels * s.kernel * s.kernel; }

/// The convolution as the library runs it, and where its picture is.
class Framed {
  public:
    explicit Framed(const ConvolutionShape& s) : s_(s), inner_(s) {
        if (s.pad_begin == s.pad_end) return;
        inner_.height += s.pad_begin + s.pad_end;
        inner_.width += s.pad_begin + s.pad_end;
        inner_.pad_begin = inner_.pad_end = 0;
    }
    const ConvolutionShape& shape() const { return inner_; }
    /// Numbers of scratch memory for a picture, whole vectors of 16 bytes, as the library takes what lies behind it; 0: it stays where it is.
    std::int64_t room() const { return s_.pad_begin == s_.pad_end ? 0 : (inner_.height * inner_.width * inner_.in_channels + 3) / 4 * 4; }
    const float* picture(const float* in, float* to) const {
        if (room() == 0) return in;
        fill_zero(to, room());
        copy_columns(s_.height, row(), in, row(), to + first(), inner_row());
        return to;
    }
    /// Where the gradient of the picture goes first; put() brings it to where it is wanted.
    float* gradient(float* d_in, float* to) const { return room() == 0 ? d_in : to; }
    void put(float* d_in, const float* from) const {
        if (room() != 0) copy_columns(s_.height, row(), from + first(), inner_row(), d_in, row());
    }

  private:
    std::int64_t row() const { return s_.width * s_.in_channels; }
    std::int64_t inner_row() const { return inner_.width * s_.in_channels; }
    std::int64_t first() const { return s_.pad_begin * (inner_row() + s_.in_channels); }
    const ConvolutionShape& s_;
    ConvolutionShape inner_;
};

}  // namespace

void convolution(const ConvolutionShape& s, const float* in, const float* weights, const float* bias, float* out) {
    const Framed framed(s);
    float *picture = scratch_floats(framed.room() + weight_count(s)), *last = picture + framed.room();
    swap_inner_axes(s.out_channels, s.in_channels, s.kernel * s.kernel, weights, last, false);
    run_convolution(framed.shape(), framed.picture(in, picture), last, out);
    add_to_each_row(s.out_height() * s.out_width(), s.out_channels, bias, out);
}

void convolution_backward(const ConvolutionShape& s, const float* in, const float* weights, const float* d_out, float* d_in,
                          float* d_weights, float* d_bias) {
    const Framed framed(s);
    float *picture = scratch_floats(framed.room() + weight_count(s)), *last = picture + framed.room();
    if (d_in != nullptr) {
        swap_inner_axes(s.out_channels, s.in_channels, s.kernel * s.kernel, weights, last, false);
        run_convolution_input_gradient(framed.shape(), last, d_out, framed.gradient(d_in, picture));
        framed.put(d_in, picture);
    }
    run_convolution_weight_gradient(framed.shape(), framed.picture(in, picture), d_out, last);
    swap_inner_axes(s.out_channels, s.kernel * s.kernel, s.in_channels, last, d_weights, true);
    add_row_sums(s.out_height() * s.out_width(), s.out_channels, d_out, d_bias);
}

}  // namespace atelier::ops::cuda
