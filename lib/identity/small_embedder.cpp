
#include <cmath>

#include "core/error.hpp"
#include "core/json.hpp"
#include "identity/face_embedder.hpp"
#include "identity/unit_vector.hpp"
#include "io/safetensors.hpp"
#include "ops/activation.hpp"
#include "ops/convolution.hpp"

namespace atelier::identity {
namespace {

class SmallEmbedder final : public FaceEmbedder {
  public:
    explicit SmallEmbedder(const std::filesystem::path& directory) : file_(directory / "model.safetensors") {
        const std::filesystem::path config = directory / "config.json";
        ATELIER_CHECK_INPUT(std::filesystem::exists(config), "{} is missing: the directory of a face embedding was expected", config.string());
        const auto json = read_json(config);
        std::vector<std::int64_t> channels;
        try {
            ATELIER_CHECK_INPUT(json.at("model_type") == "atelier_face_embedding", "{}: model_type is {}, atelier_face_embedding was expected",
                                config.string(), json.at("model_type").dump());
            const auto size = [&](const nlohmann::json& value) {
                const std::uint64_t number = value.get_ref<const nlohmann::json::number_unsigned_t&>();
                ATELIER_CHECK_INPUT(number >= 1 && number < 65536, "{}: {} is no size of a network for faces", config.string(), number);
                return static_cast<std::int64_t>(number);
            };
            side_ = size(json.at("side"));
            width_ = size(json.at("width"));
            for (const auto& value : json.at("channels")) channels.push_back(size(value));
            ATELIER_CHECK_INPUT(!channels.empty() && channels.size() < 10, "{}: {} convolutions, 1 to 9 were expected", config.string(), channels.size());
        } catch (const nlohmann::json::exception& e) {
            ATELIER_FAIL(ErrorKind::input, "{}: {}", config.string(), e.what());
        }
        const std::int64_t last = side_ >> channels.size();
        ATELIER_CHECK_INPUT(last >= 1 && last << channels.size() == side_,
                            "{}: {} halvings of {} pixels", config.string(), channels.size(), side_);
        const auto weights = io::Safetensors::open(file_);
        std::int64_t in = 3, side = side_;
        for (std::size_t i = 0; i < channels.size(); ++i, side /= 2) {
            add(weights, "convolutions." + std::to_string(i), {in, channels[i], side, side, 3, 2, 1, 1});
            in = channels[i];
        }
        add(weights, "head", {in, width_ + 1, side, side, side, 1, 0, 0});
    }

    std::vector<Face> faces(const io::Image& picture) const override {
        ATELIER_CHECK_INPUT(picture.width == side_ && picture.height == side_ && (picture.channels == 3 || picture.channels == 4),
                            "{} is for RGB pictures of {} x {} pixels, found {} x {} of {} channels", file_.string(), side_, side_, picture.height,
                            picture.width, picture.channels);
        std::vector<float> in(static_cast<std::size_t>(most_numbers_)), out(in.size()), scratch(static_cast<std::size_t>(scratch_));
        for (std::int64_t i = 0; i < side_ * side_; ++i)
            for (std::int64_t c = 0; c < 3; ++c)
                in[static_cast<std::size_t>(3 * i + c)] =
                    static_cast<float>(picture.pixels[static_cast<std::size_t>(i * picture.channels + c)]) / 127.5f - 1.0f;
        for (const ops::Convolution& convolution : convolutions_) {
            convolution.run(in.data(), out.data(), scratch.data());
            const ops::ConvolutionShape& s = convolution.shape();
            if (&convolution != &convolutions_.back()) ops::cpu::silu(out.data(), out.data(), s.out_height() * s.out_width() * s.out_channels);
            in.swap(out);
        }
        const float presence = in[static_cast<std::size_t>(width_)];
        ATELIER_CHECK_INPUT(std::isfinite(presence), "{} gives {} for whether there is a face", file_.string(), presence);
        if (presence <= 0) return {};
        Face face{static_cast<double>(side_ * side_), {in.begin(), in.begin() + width_}};
        make_unit(face.embedding, file_);
        return {std::move(face)};
    }

    std::size_t bytes(std::size_t threads) const override {
        std::size_t weights = 0;
        for (const ops::Convolution& convolution : convolutions_) weights += convolution.bytes();
        return weights + threads * static_cast<std::size_t>(2 * most_numbers_ + scratch_) * sizeof(float);
    }

  private:
    void add(const io::Safetensors& weights, const std::string& name, const ops::ConvolutionShape& s) {
        const Shape expected{s.out_channels, s.in_channels, s.kernel, s.kernel};
        const Shape& found = weights.at(name + ".weight").shape;
        ATELIER_CHECK_INPUT(found == expected && weights.at(name + ".bias").shape == Shape{s.out_channels}, "{}: {} has shape {}, {} was expected",
                            file_.string(), name, found.str(), expected.str());
        const auto kernel = weights.floats(name + ".weight"), bias = weights.floats(name + ".bias");
        convolutions_.emplace_back(s, kernel.data(), bias.data());
        most_numbers_ = std::max({most_numbers_, s.height * s.width * s.in_channels, s.out_height() * s.out_width() * s.out_channels});
        scratch_ = std::max(scratch_, convolutions_.back().scratch());
    }

    std::filesystem::path file_;
    std::int64_t side_ = 0, width_ = 0, most_numbers_ = 0, scratch_ = 0;
    std::vector<ops::Convolution> convolutions_;
};

}  // namespace

std::unique_ptr<FaceEmbedder> make_small_embedder(const std::filesystem::path& directory) { return std::make_unique<SmallEmbedder>(directory); }

}  // namespace atelier::identity
