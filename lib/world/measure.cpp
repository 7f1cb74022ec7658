#include "world/measure.hpp"

#include "core/error.hpp"

namespace atelier::world {

std::map<std::string, Measurement> measure(const nlohmann::json& attributes, Picture picture) {
    ATELIER_CHECK_INPUT(picture.size() == static_cast<std::size_t>(side) * side * 4,
                        "pictures of this world have {} x {} RGBA pixels, found {} bytes", side, side, picture.size());
    if (attributes.is_object() && attributes.contains("edit")) {
        const Edit edit = edit_from_json(attributes);
        return {{"instruction", measure_instruction(picture, edit)}, {"identity", measure_identity(picture, edit)}};
    }
    const Scene scene = scene_from_json(attributes);
    return {{"alignment", measure_alignment(picture, scene)},
            {"aesthetics", measure_aesthetics(picture)},
            {"portrait", measure_portrait(picture, scene)}};
}

}  // namespace atelier::world
