#pragma once

#include <cstdint>
#include <memory>

namespace atelier::ops {

/// A square 2-D convolution over one picture: rows and columns last but one, channels last (NHWC).
struct ConvolutionShape {
    std::int64_t in_channels = 0, out_channels = 0, height = 0, width = 0;
    std::int64_t kernel = 3, stride = 1;
    std::int64_t pad_begin = 1, pad_end = 1;  ///< zeros before the first and behind the last row and column
    std::int64_t out_height() const { return (height + pad_begin + pad_end - kernel) / stride + 1; }
    std::int64_t out_width() const { return (width + pad_begin + pad_end - kernel) / stride + 1; }
};

/// A convolution prepared for one shape: code generated and weights laid out once, then run by any number of threads at a
/// time, each run on its calling thread. The bits depend on the shape alone.
class Convolution {
  public:
    /// weights [out, in, kernel, kernel], bias [out], both copied.
    Convolution(const ConvolutionShape& shape, const float* weights, const float* bias);
    /// The weights of another one, for a shape that shares them (shares_weights()): they are not held twice.
    Convolution(const ConvolutionShape& shape, const Convolution& prepared);
    ~Convolution();
    Convolution(Convolution&&) noexcept;

    const ConvolutionShape& shape() const { return shape_; }
    /// Bytes that the prepared weights hold; 0 where they are another one's.
    std::size_t bytes() const;
    /// Numbers of scratch memory that `run` takes.
    std::int64_t scratch() const;
    /// in [height, width, in_channels] -> out [out_height, out_width, out_channels].
    void run(const float* in, float* out, float* scratch) const;

  private:
    struct Prepared;
    ConvolutionShape shape_;
    std::unique_ptr<Prepared> prepared_;
};

/// Whether weights are laid out for two shapes of picture in the same way.
bool shares_weights(const ConvolutionShape& a, const ConvolutionShape& b);

/// A convolution whose weights change between runs, with its gradients. Each call runs on its calling thread; the bits depend on the
/// shape alone.
class TrainableConvolution {
  public:
    explicit TrainableConvolution(const ConvolutionShape& shape);
    ~TrainableConvolution();
    TrainableConvolution(TrainableConvolution&&) noexcept;

    /// Numbers of scratch memory that a call takes.
    std::int64_t scratch() const;
    /// in, out as in Convolution::run; weights [out, in, kernel, kernel], bias [out].
    void forward(const float* in, const float* weights, const float* bias, float* out, float* scratch) const;
    /// d_in is written (null: skipped), d_weights and d_bias are added to.
    void backward(const float* in, const float* weights, const float* d_out, float* d_in, float* d_weights, float* d_bias,
                  float* scratch) const;

  private:
    struct Prepared;
    ConvolutionShape shape_;
    std::unique_ptr<Prepared> prepared_;
};

}  // namespace atelier::ops
