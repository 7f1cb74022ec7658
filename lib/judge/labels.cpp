#include "judge/labels.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <sstream>

#include "core/error.hpp"
#include "core/json.hpp"
#include "io/file_io.hpp"
#include "io/hdf5.hpp"
#include "io/image/png.hpp"
#include "io/lookup.hpp"

namespace atelier::judge {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* schema_name = "atelier.labels";
constexpr std::int64_t schema_version = 1;

/// `found`: read once, so that a broken picture is known before anything is done.
std::shared_ptr<const LabelledPicture> picture_of_file(const io::Image& found, const std::function<io::Image()>& read, const fs::path& file) {
    const auto again = [read, file, height = found.height, width = found.width, channels = found.channels] {
        io::Image picture = read();
        ATELIER_CHECK_INPUT(picture.height == height && picture.width == width && picture.channels == channels, "{} has changed since the labels were read",
                            file.string());
        return picture;
    };
    return std::make_shared<const LabelledPicture>(found, again);
}

/// Pictures by file, each checked once.
class PictureFiles {
  public:
    explicit PictureFiles(const fs::path& directory) : directory_(directory) {}
    std::shared_ptr<const LabelledPicture> at(const Json& name, const std::string& place) {
        ATELIER_CHECK_INPUT(name.is_string(), "{}: {} names no picture", place, name.dump());
        const fs::path relative = name.get<std::string>();
        ATELIER_CHECK_INPUT(io::stays_inside(relative) && relative.string().find('\0') == std::string::npos, "{}: picture {} lies outside the file's directory",
                            place, relative.string());
        auto& picture = pictures_[relative.lexically_normal().string()];
        const fs::path file = directory_ / relative;
        if (!picture) picture = picture_of_png(file);
        return picture;
    }

  private:
    fs::path directory_;
    std::map<std::string, std::shared_ptr<const LabelledPicture>> pictures_;
};

void check(const LabelledSample& s, const std::string& place,
           std::set<std::pair<std::string, std::string>>& seen) {
    ATELIER_CHECK_INPUT(s.kind == "t2i" || s.kind == "edit",
                        "{}: kind must be t2i or edit, found '{}'", place, s.kind);
    ATELIER_CHECK_INPUT(!s.id.empty() && !s.dimension.empty(), "{}: id and dimension must be named",
                        place);
    ATELIER_CHECK_INPUT(seen.insert({s.id, s.kind + "/" + s.dimension}).second,
                        "{}: {} of '{}' stands twice", place, s.dimension, s.id);
    ATELIER_CHECK_INPUT(!s.scores.empty(), "{}: no score", place);
    ATELIER_CHECK_INPUT(s.kind == "t2i" || !s.sources.empty(), "{}: an edit without 'sources'", place);
    for (const auto& [annotator, score] : s.scores) {
        ATELIER_CHECK_INPUT(!annotator.empty(), "{}: an annotator without a name", place);
        ATELIER_CHECK_INPUT(std::isnan(score) || (score >= 1 && score <= 5), "{}: {} gives {}: a score lies within 1 and 5",
                            place, annotator, score);
    }
}

constexpr std::string_view fields[] = {"id", "kind", "dimension", "category", "prompt", "picture", "sources", "scores", "rationale"};

std::vector<LabelledSample> read_lines(const fs::path& file) {
    std::istringstream in(io::read_text(file));  // whole first: a read that fails must not end the list early
    PictureFiles pictures(file.parent_path());
    std::vector<LabelledSample> samples;
    std::set<std::pair<std::string, std::string>> seen;
    std::string text;
    for (int number = 1; std::getline(in, text); ++number) {
        if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
        const std::string place = fmt::format("{}:{}", file.string(), number);
        const Json line = parse_json(text, place);
        ATELIER_CHECK_INPUT(line.is_object(), "{} is not a JSON object", place);
        const auto field = [&](const char* key, bool must) {
            const auto found = line.find(key);
            ATELIER_CHECK_INPUT((found == line.end() && !must) ||
                                    (found != line.end() && found->is_string()),
                                "{}: no text '{}'", place, key);
            return found == line.end() ? std::string() : found->get<std::string>();
        };
        LabelledSample s;
        s.id = field("id", true);
        s.kind = field("kind", true);
        s.dimension = field("dimension", true);
        s.category = field("category", true);
        s.prompt = field("prompt", true);
        s.rationale = field("rationale", false);
        ATELIER_CHECK_INPUT(line.contains("picture"), "{}: no text 'picture'", place);
        s.picture = pictures.at(line["picture"], place);
        for (const auto& [key, value] : line.items())
            ATELIER_CHECK_INPUT(std::find(std::begin(fields), std::end(fields), key) != std::end(fields), "{}: unknown field '{}'", place, key);
        const Json sources = line.value("sources", Json::array());
        ATELIER_CHECK_INPUT(sources.is_array(), "{}: 'sources' is no list of pictures", place);
        for (const Json& source : sources)
            s.sources.push_back(pictures.at(source, place));
        const Json scores = line.value("scores", Json());
        ATELIER_CHECK_INPUT(scores.is_object(), "{}: no 'scores' by annotator", place);
        for (const auto& [annotator, score] : scores.items()) {
            ATELIER_CHECK_INPUT(score.is_number() || score.is_null(), "{}: {} gives {}, no number and not null", place, annotator,
                                score.dump());
            s.scores.emplace_back(annotator, score.is_null() ? std::numeric_limits<double>::quiet_NaN() : score.get<double>());
        }
        check(s, place, seen);
        samples.push_back(std::move(s));
    }
    ATELIER_CHECK_INPUT(!samples.empty(), "{} holds no label", file.string());
    return samples;
}

io::Image read_picture(const io::hdf5::File& file, const fs::path& path, std::size_t i) {
    const std::string name = fmt::format("/pictures/{}", i);
    const auto extents = file.extents(name);
    ATELIER_CHECK_INPUT(extents.size() == 3 && (extents[2] == 3 || extents[2] == 4), "{}: {} is no picture", path.string(), name);
    io::Image picture;
    picture.height = static_cast<int>(extents[0]);
    picture.width = static_cast<int>(extents[1]);
    picture.channels = static_cast<int>(extents[2]);
    picture.pixels = file.read<std::uint8_t>(name, {-1, -1, -1});
    return picture;
}

std::vector<LabelledSample> read_hdf5(const fs::path& path) {
    const auto file = io::hdf5::File::open(path);
    ATELIER_CHECK_INPUT(file.text_attribute("/", "schema") == schema_name &&
                            file.integer_attribute("/", "schema_version") == schema_version,
                        "{} is no file of labels of version {}", path.string(), schema_version);
    std::vector<std::shared_ptr<const LabelledPicture>> pictures;
    const std::size_t count = file.children("/pictures").size();
    for (std::size_t i = 0; i < count; ++i) {
        pictures.push_back(picture_of_file(read_picture(file, path, i), [path, i] { return read_picture(io::hdf5::File::open(path), path, i); }, path));
    }
    const auto picture_at = [&](std::uint32_t i) {
        ATELIER_CHECK_INPUT(i < pictures.size(), "{} names picture {} of {}", path.string(), i,
                            pictures.size());
        return pictures[i];
    };
    const auto ids = file.read_strings("/samples/id");
    const auto n = static_cast<std::int64_t>(ids.size());
    const auto shown = file.read<std::uint32_t>("/samples/picture", {n});
    std::vector<LabelledSample> samples(ids.size());
    for (std::size_t i = 0; i < ids.size(); ++i) {
        samples[i].id = ids[i];
        samples[i].picture = picture_at(shown[i]);
    }
    for (const auto& [name, member] :
         {std::pair("kind", &LabelledSample::kind),
          std::pair("dimension", &LabelledSample::dimension),
          std::pair("category", &LabelledSample::category),
          std::pair("prompt", &LabelledSample::prompt),
          std::pair("rationale", &LabelledSample::rationale)}) {
        auto texts = file.read_strings(std::string("/samples/") + name);
        ATELIER_CHECK_INPUT(texts.size() == ids.size(), "{}: /samples/{} has {} of {} rows",
                            path.string(), name, texts.size(), ids.size());
        for (std::size_t i = 0; i < ids.size(); ++i) samples[i].*member = std::move(texts[i]);
    }
    const auto sample_at = [&](std::uint32_t i) -> LabelledSample& {
        ATELIER_CHECK_INPUT(i < samples.size(), "{} names sample {} of {}", path.string(), i,
                            samples.size());
        return samples[i];
    };
    const auto source_sample = file.read<std::uint32_t>("/sources/sample", {-1});
    const auto source_picture = file.read<std::uint32_t>(
        "/sources/picture", {static_cast<std::int64_t>(source_sample.size())});
    for (std::size_t i = 0; i < source_sample.size(); ++i)
        sample_at(source_sample[i]).sources.push_back(picture_at(source_picture[i]));
    const auto scored = file.read<std::uint32_t>("/scores/sample", {-1});
    const auto score =
        file.read<double>("/scores/score", {static_cast<std::int64_t>(scored.size())});
    const auto annotator = file.read_strings("/scores/annotator");
    ATELIER_CHECK_INPUT(annotator.size() == scored.size(), "{}: {} annotators of {} scores",
                        path.string(), annotator.size(), scored.size());
    for (std::size_t i = 0; i < scored.size(); ++i)
        sample_at(scored[i]).scores.emplace_back(annotator[i], score[i]);
    check_labels(samples, path);
    return samples;
}

template <typename T>
Tensor column(const std::vector<T>& values) {
    return Tensor::of(values.data(), {static_cast<std::int64_t>(values.size())});
}

}  // namespace

std::vector<double> LabelledSample::given_scores() const {
    std::vector<double> given;
    for (const auto& [annotator, score] : scores)
        if (!std::isnan(score)) given.push_back(score);
    return given;
}

bool LabelledSample::applies() const { return 2 * given_scores().size() > scores.size(); }

double LabelledSample::mean_score() const {
    const std::vector<double> given = given_scores();
    return std::accumulate(given.begin(), given.end(), 0.0) / static_cast<double>(given.size());
}

void check_labels(const std::vector<LabelledSample>& samples, const fs::path& place) {
    ATELIER_CHECK_INPUT(!samples.empty(), "{} holds no label", place.string());
    std::set<std::pair<std::string, std::string>> seen;
    for (std::size_t i = 0; i < samples.size(); ++i) check(samples[i], fmt::format("{}: sample {}", place.string(), i), seen);
}

std::vector<LabelledSample> read_labels(const fs::path& file) {
    ATELIER_CHECK_INPUT(fs::exists(file), "cannot open the label file {}", file.string());
    return io::hdf5::is_hdf5(file) ? read_hdf5(file) : read_lines(file);
}

std::vector<LabelledSample> read_labels(std::span<const std::string> files) {
    std::vector<LabelledSample> all;
    for (const std::string& file : files) {
        auto samples = read_labels(fs::path(file));
        std::move(samples.begin(), samples.end(), std::back_inserter(all));
    }
    if (files.size() > 1) check_labels(all, fmt::format("{}", fmt::join(files, ", ")));
    return all;
}

std::shared_ptr<const LabelledPicture> picture_of_png(const fs::path& file) {
    return picture_of_file(io::read_png(file), [file] { return io::read_png(file); }, file);
}

LabelledPicture::LabelledPicture(io::Image picture)
    : height_(picture.height), width_(picture.width), channels_(picture.channels), is_kept_(true), read_([kept = std::move(picture)] { return kept; }) {}

LabelledPicture::LabelledPicture(const io::Image& size, std::function<io::Image()> read)
    : height_(size.height), width_(size.width), channels_(size.channels), is_kept_(false), read_(std::move(read)) {}

std::size_t LabelledPicture::bytes() const {
    return static_cast<std::size_t>(height_) * static_cast<std::size_t>(width_) * static_cast<std::size_t>(channels_);
}

void write_labels(const fs::path& path, const std::vector<LabelledSample>& samples) {
    auto file = io::hdf5::File::create(path);
    file.set_attribute("/", "schema", std::string(schema_name));
    file.set_attribute("/", "schema_version", schema_version);
    std::map<const LabelledPicture*, std::uint32_t> numbers;
    const auto number_of = [&](const LabelledPicture& shown) {
        const auto [found, is_new] =
            numbers.try_emplace(&shown, static_cast<std::uint32_t>(numbers.size()));
        if (is_new) {
            const io::Image picture = shown.load();
            file.write(fmt::format("/pictures/{}", found->second),
                       Tensor::of(picture.pixels.data(),
                                  {picture.height, picture.width, picture.channels}));
        }
        return found->second;
    };
    std::vector<std::string> id, kind, dimension, category, prompt, rationale, annotator;
    std::vector<std::uint32_t> picture, source_sample, source_picture, scored;
    std::vector<double> score;
    for (std::size_t i = 0; i < samples.size(); ++i) {
        const LabelledSample& s = samples[i];
        id.push_back(s.id);
        kind.push_back(s.kind);
        dimension.push_back(s.dimension);
        category.push_back(s.category);
        prompt.push_back(s.prompt);
        rationale.push_back(s.rationale);
        picture.push_back(number_of(*s.picture));
        for (const auto& source : s.sources) {
            source_sample.push_back(static_cast<std::uint32_t>(i));
            source_picture.push_back(number_of(*source));
        }
        for (const auto& [who, value] : s.scores) {
            scored.push_back(static_cast<std::uint32_t>(i));
            annotator.push_back(who);
            score.push_back(value);
        }
    }
    file.write_strings("/samples/id", id);
    file.write_strings("/samples/kind", kind);
    file.write_strings("/samples/dimension", dimension);
    file.write_strings("/samples/category", category);
    file.write_strings("/samples/prompt", prompt);
    file.write_strings("/samples/rationale", rationale);
    file.write("/samples/picture", column(picture));
    file.write("/sources/sample", column(source_sample));
    file.write("/sources/picture", column(source_picture));
    file.write("/scores/sample", column(scored));
    file.write("/scores/score", column(score));
    file.write_strings("/scores/annotator", annotator);
    file.close();
}

}  // namespace atelier::judge
