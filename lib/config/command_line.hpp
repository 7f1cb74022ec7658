#pragma once

#include <boost/program_options.hpp>
#include <optional>

namespace atelier::config {

/// What a command line says, written into the variables that the options name. Nothing when the help text was asked for: it then stands
/// on standard output, where `prints`. Throws Error(usage) for unknown, malformed and missing options.
std::optional<boost::program_options::variables_map> parse_command_line(
    const boost::program_options::options_description& options, int argc, char** argv,
    const boost::program_options::positional_options_description& places = {}, bool prints = true);

}  // namespace atelier::config
