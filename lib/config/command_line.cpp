#include "config/command_line.hpp"

#include <iostream>

#include "core/error.hpp"

namespace atelier::config {

namespace po = boost::program_options;

std::optional<po::variables_map> parse_command_line(const po::options_description& options, int argc, char** argv,
                                                    const po::positional_options_description& places, bool prints) {
    try {
        po::variables_map values;
        po::store(po::command_line_parser(argc, argv).options(options).positional(places).run(), values);
        if (values.count("help") != 0) {
            if (prints) std::cout << options << '\n';
            return std::nullopt;
        }
        po::notify(values);
        return values;
    } catch (const po::error& e) {
        ATELIER_FAIL(ErrorKind::usage, "{} (see --help)", e.what());
    }
}

}  // namespace atelier::config
