#include "core/process.hpp"

#include <unistd.h>

namespace atelier {

Process& process() {
    static Process instance = [] {
        Process p;
        char name[256] = {};
        if (gethostname(name, sizeof(name) - 1) == 0) p.host = name;
        if (auto dot = p.host.find('.'); dot != std::string::npos) p.host.resize(dot);
        return p;
    }();
    return instance;
}

}  // namespace atelier
