#include "world/pixels.hpp"

namespace atelier::world {

std::vector<Blob> blobs(Picture p, const std::function<bool(int x, int y)>& inside, int least) {
    std::vector<std::uint8_t> open(pixel_count);
    for (int i = 0; i < pixel_count; ++i) open[static_cast<std::size_t>(i)] = inside(i % side, i / side) ? 1 : 0;
    std::vector<Blob> found;
    std::vector<int> stack;
    for (int start = 0; start < pixel_count; ++start) {
        if (open[static_cast<std::size_t>(start)] == 0) continue;
        Blob blob;
        stack.assign(1, start);
        open[static_cast<std::size_t>(start)] = 0;
        while (!stack.empty()) {
            const int at = stack.back(), x = at % side, y = at / side;
            stack.pop_back();
            blob.pixels.push_back(at);
            blob.x += x + 0.5;
            blob.y += y + 0.5;
            const Colour c = pixel(p, x, y);
            for (int k = 0; k < 3; ++k) blob.colour[static_cast<std::size_t>(k)] += c[static_cast<std::size_t>(k)];
            const auto visit = [&](int next) {
                if (open[static_cast<std::size_t>(next)] == 0) return;
                open[static_cast<std::size_t>(next)] = 0;
                stack.push_back(next);
            };
            if (x > 0) visit(at - 1);
            if (x + 1 < side) visit(at + 1);
            if (y > 0) visit(at - side);
            if (y + 1 < side) visit(at + side);
        }
        if (blob.area() < least) continue;
        blob.x /= blob.area();
        blob.y /= blob.area();
        for (double& v : blob.colour) v /= blob.area();
        found.push_back(std::move(blob));
    }
    std::stable_sort(found.begin(), found.end(), [](const Blob& a, const Blob& b) { return a.area() > b.area(); });
    return found;
}

}  // namespace atelier::world
