# With Clang (sanitizers, fuzzers) the headers of others that most files include are read once for the libraries and once for the tests: they are
# half of what a file costs there. GCC 12 takes what comes from a precompiled header for ours and warns of it (relatives of its bug 105329).
set(ATELIER_COMMON_HEADERS <algorithm> <array> <cmath> <cstdint> <filesystem> <functional> <map> <memory> <optional> <span> <stdexcept> <string>
    <string_view> <unordered_map> <utility> <vector> <fmt/format.h> <nlohmann/json.hpp>)
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    set(ATELIER_PRECOMPILES ON)
    set(precompiled_source ${CMAKE_BINARY_DIR}/precompiled.cpp)
    file(WRITE ${precompiled_source} "")
endif()

# The common headers and HEADERS, read once, compiled with OPTIONS: the target atelier_precompiled_KIND, a library or a program as its users are.
function(atelier_precompile kind)
    cmake_parse_arguments(ARG "PROGRAM" "" "HEADERS;DEPENDS;OPTIONS" ${ARGN})
    set(target atelier_precompiled_${kind})
    if(ARG_PROGRAM)
        add_executable(${target} EXCLUDE_FROM_ALL ${precompiled_source})
    else()
        add_library(${target} STATIC EXCLUDE_FROM_ALL ${precompiled_source})
    endif()
    target_precompile_headers(${target} PRIVATE ${ATELIER_COMMON_HEADERS} ${ARG_HEADERS})
    target_link_libraries(${target} PRIVATE fmt::fmt nlohmann_json::nlohmann_json OpenMP::OpenMP_CXX ${ARG_DEPENDS})
    target_compile_options(${target} PRIVATE ${ARG_OPTIONS})
    atelier_flags(${target})
endfunction()

# Compiled as atelier_precompiled_KIND is, with its headers.
function(atelier_use_precompiled target kind)
    if(ATELIER_PRECOMPILES)
        target_link_libraries(${target} PRIVATE OpenMP::OpenMP_CXX)
        target_precompile_headers(${target} REUSE_FROM atelier_precompiled_${kind})
    endif()
endfunction()

# Several sources of a library are compiled as one (names in anonymous namespaces are a library's then): headers are most of what a source costs.
# Off, a change to one source compiles that one alone.
option(ATELIER_UNITY "Compile several sources of a library as one: half the work of a whole build" ON)

# atelier_library(NAME SOURCES ... [DEPENDS ...] [PLAIN] [APART]): static library atelier_NAME, alias atelier::NAME. PLAIN: it has no long loops of
# its own, and is not optimized under sanitizers (a source of the stages then takes half the time); APART: each source is compiled alone always.
function(atelier_library name)
    cmake_parse_arguments(ARG "PLAIN;APART" "" "SOURCES;DEPENDS" ${ARGN})
    add_library(atelier_${name} STATIC ${ARG_SOURCES})
    add_library(atelier::${name} ALIAS atelier_${name})
    target_include_directories(atelier_${name} PUBLIC ${CMAKE_SOURCE_DIR}/lib ${CMAKE_SOURCE_DIR})
    target_link_libraries(atelier_${name} PUBLIC ${ARG_DEPENDS})
    if(ATELIER_SANITIZE AND ARG_PLAIN)
        target_compile_options(atelier_${name} PRIVATE -O0)
        atelier_use_precompiled(atelier_${name} unoptimized)
    else()
        atelier_use_precompiled(atelier_${name} library)
    endif()
    if(ATELIER_UNITY AND NOT ARG_APART)
        set_target_properties(atelier_${name} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
        # It takes the sources that are compiled as one for headers.
        target_compile_options(atelier_${name} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Wno-subobject-linkage>)
    endif()
    atelier_flags(atelier_${name})
endfunction()

# atelier_program(NAME SOURCES ... DEPENDS ...): installed executable atelier-NAME.
function(atelier_program name)
    cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
    add_executable(atelier-${name} ${ARG_SOURCES})
    target_link_libraries(atelier-${name} PRIVATE ${ARG_DEPENDS})
    atelier_flags(atelier-${name})
    install(TARGETS atelier-${name} RUNTIME DESTINATION bin)
endfunction()

# atelier_test(NAME SOURCES ... DEPENDS ... [LABELS ...]): GoogleTest program, discovered by ctest; part of the target test_programs.
add_custom_target(test_programs)
function(atelier_test name)
    cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS;LABELS" ${ARGN})
    add_executable(${name} ${ARG_SOURCES})
    target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} GTest::gtest_main GTest::gmock)
    target_compile_definitions(${name} PRIVATE
        ATELIER_SOURCE_DIR="${CMAKE_SOURCE_DIR}" ATELIER_BINARY_DIR="${CMAKE_BINARY_DIR}")
    atelier_flags(${name})
    # Optimizing them takes longer than it saves. The first two have long loops of their own, the third looks at its callers.
    if(NOT name MATCHES "^(ops|world|step_loop)_test$")
        target_compile_options(${name} PRIVATE -O0)
        atelier_use_precompiled(${name} test)
    endif()
    add_dependencies(test_programs ${name})
    gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 600)
endfunction()

function(atelier_flags target)
    target_compile_options(${target} PRIVATE -Wall -Wextra -Wno-missing-field-initializers)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
        target_compile_options(${target} PRIVATE -Wno-restrict)  # false positives on std::string, GCC bug 105329
    endif()
    if(ATELIER_WERROR)
        target_compile_options(${target} PRIVATE -Werror)
    endif()
endfunction()

if(ATELIER_PRECOMPILES)
    atelier_precompile(library)
    atelier_precompile(unoptimized OPTIONS -O0)
endif()
