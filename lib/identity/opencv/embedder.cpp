#include <mutex>
#include <opencv2/core/utility.hpp>
#include <opencv2/imgproc.hpp>
#include <opencv2/objdetect/face.hpp>

#include "core/error.hpp"
#include "identity/opencv_entry.hpp"
#include "identity/unit_vector.hpp"

namespace atelier::identity {
namespace {

/// cv::dnn networks are for one thread each: as many pairs are made as are used at once.
class OpenCvEmbedder final : public FaceEmbedder {
  public:
    explicit OpenCvEmbedder(const OpenCvModels& models) : models_(models) {
        for (const auto& file : {models.detector, models.recogniser})
            ATELIER_CHECK_INPUT(std::filesystem::is_regular_file(file), "{} is missing: an ONNX model was expected (identity.detector, identity.recogniser)",
                                file.string());
        idle_.push_back(load());
        model_bytes_ = std::filesystem::file_size(models.detector) + std::filesystem::file_size(models.recogniser);
    }

    std::vector<Face> faces(const io::Image& picture) const override {
        ATELIER_CHECK_INPUT(!picture.empty() && (picture.channels == 3 || picture.channels == 4), "a picture of {} channels, RGB or RGBA was expected",
                            picture.channels);
        Networks networks = take();
        std::vector<Face> found;
        try {
            const cv::Mat pixels(picture.height, picture.width, CV_8UC(picture.channels), const_cast<std::uint8_t*>(picture.pixels.data()));
            cv::Mat bgr, frames;
            cv::cvtColor(pixels, bgr, picture.channels == 4 ? cv::COLOR_RGBA2BGR : cv::COLOR_RGB2BGR);
            networks.detector->setInputSize(bgr.size());
            networks.detector->detect(bgr, frames);
            for (int i = 0; i < frames.rows; ++i) {
                cv::Mat aligned, feature;
                networks.recogniser->alignCrop(bgr, frames.row(i), aligned);
                networks.recogniser->feature(aligned, feature);
                ATELIER_CHECK_INPUT(feature.type() == CV_32F && feature.isContinuous() && !feature.empty(), "{} gives no vector of floats",
                                    models_.recogniser.string());
                Face face;
                face.area = static_cast<double>(frames.at<float>(i, 2)) * frames.at<float>(i, 3);
                face.embedding.assign(feature.ptr<float>(), feature.ptr<float>() + feature.total());
                make_unit(face.embedding, models_.recogniser);
                found.push_back(std::move(face));
            }
        } catch (const cv::Exception& e) {
            ATELIER_FAIL(ErrorKind::input, "OpenCV cannot use {} and {} on a picture of {} x {}: {}", models_.detector.string(), models_.recogniser.string(),
                         picture.height, picture.width, e.err);
        }
        const std::lock_guard lock(mutex_);
        idle_.push_back(std::move(networks));
        return found;
    }

    /// Weights, and about as much again for what lies between the layers.
    std::size_t bytes(std::size_t threads) const override { return 2 * threads * model_bytes_; }

  private:
    struct Networks {
        cv::Ptr<cv::FaceDetectorYN> detector;
        cv::Ptr<cv::FaceRecognizerSF> recogniser;
    };
    Networks load() const {
        try {
            // Overlapping frames of one face, and how many are looked at: OpenCV's own defaults.
            return {cv::FaceDetectorYN::create(models_.detector.string(), "", cv::Size(320, 320), static_cast<float>(models_.min_confidence), 0.3f, 5000),
                    cv::FaceRecognizerSF::create(models_.recogniser.string(), "")};
        } catch (const cv::Exception& e) {
            ATELIER_FAIL(ErrorKind::input, "OpenCV {} cannot read {} or {}: {}", CV_VERSION, models_.detector.string(), models_.recogniser.string(), e.err);
        }
    }
    Networks take() const {
        std::unique_lock lock(mutex_);
        if (idle_.empty()) {
            lock.unlock();
            return load();
        }
        Networks networks = std::move(idle_.back());
        idle_.pop_back();
        return networks;
    }

    OpenCvModels models_;
    std::size_t model_bytes_ = 0;
    mutable std::mutex mutex_;
    mutable std::vector<Networks> idle_;
};

}  // namespace
}  // namespace atelier::identity

extern "C" __attribute__((visibility("default"))) atelier::identity::FaceEmbedder* atelier_opencv_embedder(
    const atelier::Process& process, const atelier::identity::OpenCvModels& models) {
    atelier::process() = process;
    cv::setNumThreads(1);  // a picture a thread: the scoring threads are what runs side by side
    return new atelier::identity::OpenCvEmbedder(models);
}
