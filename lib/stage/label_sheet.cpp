#include "stage/label_sheet.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <ostream>
#include <set>
#include <span>

#include "core/error.hpp"
#include "eval/score_agreement.hpp"
#include "io/csv.hpp"
#include "io/image/png.hpp"
#include "io/publish.hpp"
#include "io/report/html.hpp"
#include "io/trajectory.hpp"
#include "io/lookup.hpp"
#include "judge/answer.hpp"
#include "judge/labels.hpp"
#include "model/processor/resize.hpp"
#include "model/tokenizer/byte_level.hpp"
#include "stage/inspect.hpp"

namespace atelier::stage {
namespace {

namespace fs = std::filesystem;

const std::vector<std::string> columns{"id",      "kind",        "dimension",    "category",
                                       "prompt",  "picture",     "sources",      "judge_score",
                                       "judge_reason", "annotator", "score",     "rationale"};

void write_picture(const fs::path& directory, const std::string& name, std::int64_t width,
                   std::int64_t height, std::span<const std::uint8_t> rgba) {
    io::Image image(static_cast<int>(width), static_cast<int>(height), 4);
    image.pixels.assign(rgba.begin(), rgba.end());
    io::write_png(directory / name, image);
}

/// The pictures of each prompt of a shard, written; names joined by blanks.
std::vector<std::string> write_sources(const io::TrajectoryPrompts& prompts, const std::string& stem,
                                       const fs::path& directory) {
    std::vector<std::string> names(prompts.id.size());
    for (std::size_t i = 0; i < prompts.images.size(); ++i) {
        const io::ReferenceImage& image = prompts.images[i];
        const std::string name = fmt::format("pictures/{}-source-{}.png", stem, i);
        write_picture(directory, name, image.width, image.height, image.rgba);
        std::string& all = names.at(image.prompt);
        all += (all.empty() ? "" : " ") + name;
    }
    return names;
}

std::vector<std::string> words(const std::string& text) {
    std::vector<std::string> found;
    for (std::size_t begin = 0; begin < text.size();) {
        const auto end = std::min(text.find(' ', begin), text.size());
        if (end > begin) found.push_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    return found;
}

/// A picture of a sheet, once.
struct SheetPicture {
    fs::path file;
    std::shared_ptr<const judge::LabelledPicture> picture;
    std::string pixels;  ///< their digest, of RGBA: programs that write PNGs leave out an alpha that says nothing
    bool shows_the_same(const SheetPicture& other) const {
        return picture->width() == other.picture->width() && picture->height() == other.picture->height() && pixels == other.pixels;
    }
};

SheetPicture read_sheet_picture(const fs::path& file) {
    SheetPicture found{file, judge::picture_of_png(file), {}};
    const io::Image rgba = model::with_alpha(found.picture->load());
    found.pixels = io::digest_bytes(rgba.pixels.data(), rgba.pixels.size());
    return found;
}

/// What an id stands for: its first row's picture and sources. Another run, or another model of an evaluation, has the same ids.
struct SheetId {
    std::string place;
    std::size_t sample = 0;  ///< the first of it
    std::vector<const SheetPicture*> shown;
};

void check_same(const SheetId& known, const SheetId& row, const std::string& id) {
    ATELIER_CHECK_INPUT(known.shown.size() == row.shown.size(), "{}: '{}' has {} source pictures, and {} in {}", row.place, id,
                        row.shown.size() - 1, known.shown.size() - 1, known.place);
    for (std::size_t i = 0; i < row.shown.size(); ++i)
        ATELIER_CHECK_INPUT(row.shown[i] == known.shown[i] || row.shown[i]->shows_the_same(*known.shown[i]),
                            "{}: '{}' shows {}, which is another picture than {} of {}: sheets of other runs or models need other ids", row.place, id,
                            row.shown[i]->file.string(), known.shown[i]->file.string(), known.place);
}

/// A number written with a point or, as some spreadsheets do, a comma; NaN for "none".
double score_in(std::string text, const std::string& place) {
    std::string lower = text;
    std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    if (lower == "none") return std::numeric_limits<double>::quiet_NaN();
    std::replace(text.begin(), text.end(), ',', '.');
    double score = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), score);
    ATELIER_CHECK_INPUT(error == std::errc() && end == text.data() + text.size() && score >= 1 &&
                            score <= 5,
                        "{}: the score '{}' is no number within 1 and 5, and not none", place, text);
    return score;
}

}  // namespace

int write_label_sheet(const fs::path& path, const fs::path& directory) {
    io::make_directories(directory / "pictures");
    io::CsvRows rows{columns};
    std::string html =
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>Pictures to label</title>\n<style>\n"
        "body { font-family: sans-serif; margin: 2em; }\n"
        "section { display: flex; gap: 1em; margin-bottom: 1.5em; }\n"
        "img { image-rendering: pixelated; max-width: 24em; }\n"
        "td { vertical-align: top; padding: 0 1em 0.3em 0; }\n</style>\n"
        "<h1>Pictures to label</h1>\n<p>Fill in annotator, score (1 to 5, halves are fine; none where the "
        "dimension does not apply) and rationale in labels.csv.</p>\n";
    int count = 0;
    for (const fs::path& file : shards_at(path)) {
        const auto shard = io::read_trajectory(file);
        const std::string stem = file.stem().string();
        const auto sources = write_sources(shard.prompts, io::file_name_of(stem), directory);
        for (const io::TrajectorySamples& s : shard.shapes) {
            const std::size_t bytes = s.picture.size() / static_cast<std::size_t>(s.samples());
            for (std::size_t m = 0; m < static_cast<std::size_t>(s.samples()); ++m, ++count) {
                const std::uint32_t p = s.prompt[m];
                const std::string id =
                                      fmt::format("{}-{}-{:02}", stem, shard.prompts.id[p], s.member[m]),
                                  picture = "pictures/" + io::file_name_of(id) + ".png",
                                  kind = sources[p].empty() ? "t2i" : "edit";
                write_picture(directory, picture, s.picture_width, s.picture_height,
                              std::span(s.picture).subspan(m * bytes, bytes));
                html += "<section>\n";
                for (const std::string& source : words(sources[p]))
                    html += fmt::format("<img src=\"{}\" alt=\"source\">\n", io::address_of(source));
                html += fmt::format(
                    "<img src=\"{}\" alt=\"{}\">\n<div><h2>{}</h2>\n<p>{} · {}</p>\n<table>\n",
                    io::address_of(picture), io::escape_html(id), io::escape_html(shard.prompts.text[p]), io::escape_html(id),
                    io::escape_html(shard.prompts.category[p]));
                for (const auto& [dimension, column] : s.reward) {
                    const std::string score = column.present[m] != 0
                                                  ? fmt::format("{:.3f}", column.score[m])
                                                  : std::string();
                    html += fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                                        io::escape_html(dimension), score.empty() ? "–" : score,
                                        io::escape_html(column.reason[m]));
                    rows.push_back({id, kind, dimension, shard.prompts.category[p],
                                    shard.prompts.text[p], picture, sources[p], score,
                                    column.reason[m], "", "", ""});
                }
                html += "</table></div>\n</section>\n";
            }
        }
    }
    io::publish_text(directory / "labels.csv", "\xef\xbb\xbf" + io::to_csv(rows));  // the mark tells spreadsheets that it is UTF-8
    io::publish_text(directory / "index.html", html);
    return count;
}

void read_label_sheets(const std::vector<fs::path>& sheets, const fs::path& labels,
                       std::ostream& out) {
    std::vector<judge::LabelledSample> samples;
    std::map<std::pair<std::string, std::string>, std::size_t> numbers;
    std::map<std::string, SheetPicture> pictures;
    std::map<std::string, SheetId> ids;  // by kind and id
    int left_out = 0;
    for (const fs::path& sheet : sheets) {
        const io::CsvRows rows = io::read_csv(sheet);
        ATELIER_CHECK_INPUT(!rows.empty(), "{} is empty", sheet.string());
        std::map<std::string, std::size_t> at;
        for (std::size_t i = 0; i < rows[0].size(); ++i)
            ATELIER_CHECK_INPUT(at.emplace(judge::trimmed(rows[0][i]), i).second, "{} has two columns '{}'", sheet.string(), rows[0][i]);
        for (const std::string& name : columns)
            ATELIER_CHECK_INPUT(at.contains(name) || name.starts_with("judge_"),
                                "{} has no column '{}'", sheet.string(), name);
        const auto picture = [&](const std::string& name) -> const SheetPicture* {
            ATELIER_CHECK_INPUT(io::stays_inside(name), "{}: picture {} lies outside the sheet's directory", sheet.string(), name);
            const fs::path file = sheet.parent_path() / name;
            auto& found = pictures[fs::absolute(file).lexically_normal().string()];
            if (!found.picture) found = read_sheet_picture(file);
            return &found;
        };
        for (std::size_t i = 1; i < rows.size(); ++i) {
            const std::string place = fmt::format("{}: row {}", sheet.string(), i + 1);
            for (const std::string& each : rows[i])
                ATELIER_CHECK_INPUT(model::find_invalid_utf8(each) == std::string::npos, "{} is not UTF-8: save the sheet as such", place);
            const auto field = [&](const char* name) { return std::string(judge::trimmed(rows[i][at.at(name)])); };
            if (field("score").empty()) continue;
            ATELIER_CHECK_INPUT(!field("annotator").empty(), "{} has a score and no annotator",
                                place);
            const std::string key = field("kind") + "/" + field("id");
            SheetId row{place, samples.size(), {picture(field("picture"))}};
            for (const std::string& source : words(field("sources"))) row.shown.push_back(picture(source));
            const auto [known, is_new_id] = ids.try_emplace(key, row);
            if (!is_new_id) {
                const std::string& prompt = samples[known->second.sample].prompt;
                ATELIER_CHECK_INPUT(prompt == field("prompt"), "{}: another prompt of '{}' than in {}: \"{}\"", place, field("id"), known->second.place,
                                    field("prompt"));
                check_same(known->second, row, field("id"));
            }
            const auto [number, is_new] = numbers.try_emplace({key, field("dimension")}, samples.size());
            if (is_new) {
                judge::LabelledSample s;
                s.id = field("id");
                s.kind = field("kind");
                s.dimension = field("dimension");
                s.category = field("category");
                s.prompt = field("prompt");
                const auto& shown = known->second.shown;
                s.picture = shown[0]->picture;
                for (std::size_t k = 1; k < shown.size(); ++k) s.sources.push_back(shown[k]->picture);
                samples.push_back(std::move(s));
            }
            judge::LabelledSample& s = samples[number->second];
            if (s.rationale.empty())
                s.rationale = field("rationale");
            else if (const std::string other = field("rationale"); !other.empty() && other != s.rationale)
                ++left_out;
            const std::string annotator = field("annotator");
            ATELIER_CHECK_INPUT(std::none_of(s.scores.begin(), s.scores.end(),
                                             [&](const auto& each) {
                                                 return each.first == annotator;
                                             }),
                                "{}: {} scores {} of {} twice", place, annotator, s.dimension, s.id);
            s.scores.emplace_back(annotator, score_in(field("score"), place));
        }
    }
    ATELIER_CHECK_INPUT(!samples.empty(), "no row of {} sheets has a score", sheets.size());
    judge::check_labels(samples, labels);  // before anything is published
    io::publish_file(labels, [&](const fs::path& temporary) { judge::write_labels(temporary, samples); });
    if (left_out > 0) out << fmt::format("{} rationales were left out: a label keeps the first annotator's\n", left_out);
    describe_labels(samples, labels, out);
}

void describe_labels(const std::vector<judge::LabelledSample>& samples, const fs::path& file, std::ostream& out) {
    std::map<std::string, int> by_annotator;
    std::map<std::string, std::vector<std::vector<double>>> units;
    std::set<const judge::LabelledPicture*> pictures;
    std::size_t scores = 0, absent = 0;
    for (const judge::LabelledSample& s : samples) {
        for (const auto& [annotator, score] : s.scores) {
            ++by_annotator[annotator];
            ++scores;
            absent += std::isnan(score) ? 1 : 0;
        }
        units[s.kind + "/" + s.dimension].push_back(s.given_scores());
        pictures.insert(s.picture.get());
    }
    for (const auto& [annotator, count] : by_annotator)
        out << fmt::format("{}: {} labels\n", annotator, count);
    for (const auto& [name, values] : units) {
        const auto alpha = eval::krippendorff_alpha(values);
        out << fmt::format("{}: {} pictures, agreement of annotators (Krippendorff's alpha) {}\n",
                           name, values.size(),
                           alpha ? fmt::format("{:.3f} over the {} with two scores or more", *alpha, eval::compared_units(values))
                                 : "none: too few labelled twice, or all alike");
    }
    out << fmt::format("{}: {} labelled samples, {} scores, {} times that a dimension does not apply, {} pictures\n", file.string(), samples.size(),
                       scores - absent, absent, pictures.size());
}

}  // namespace atelier::stage
