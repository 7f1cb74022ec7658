# With Clang (sanitizers, fuzzers) the headers of others that most files include are read once for the libraries and once for the tests: they are
# half of what a file costs there. GCC 12 takes what comes from a precompiled header for ours and warns of it (relatives of its bug 105329).
set(ATELIER_COMMON_HEADERS <algorithm> <array> <cmath> <cstdint> <filesystem> <functional> <map> <memory> <optional> <span> <stdexcept> <string>
    <string_view> <unordered_map> <utility> <vector> <fmt/format.h> <nlohmann/json.hpp>)
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    set(ATELIER_PRECOMPILES ON)
    set(precompiled_source ${CMAKE_BINARY_DIR}/precompiled.cpp)
    file(WRITE ${precompiled_source} "")
    add_library(atelier_precompiled_library STATIC ${precompiled_source})
    target_precompile_headers(atelier_precompiled_library PRIVATE ${ATELIER_COMMON_HEADERS})
    target_link_libraries(atelier_precompiled_library PRIVATE fmt::fmt nlohmann_json::nlohmann_json OpenMP::OpenMP_CXX)
endif()

# Compiled as atelier_precompiled_KIND is, with its headers.
function(atelier_use_precompiled target kind)
    if(ATELIER_PRECOMPILES)
        target_link_libraries(${target} PRIVATE OpenMP::OpenMP_CXX)
        target_precompile_headers(${target} REUSE_FROM atelier_precompiled_${kind})
    endif()
endfunction()

# atelier_library(NAME SOURCES ... [DEPENDS ...]): static library atelier_NAME, alias atelier::NAME.
function(atelier_library name)
    cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
    add_library(atelier_${name} STATIC ${ARG_SOURCES})
    add_library(atelier::${name} ALIAS atelier_${name})
    target_include_directories(atelier_${name} PUBLIC ${CMAKE_SOURCE_DIR}/lib ${CMAKE_SOURCE_DIR})
    target_link_libraries(atelier_${name} PUBLIC ${ARG_DEPENDS})
    atelier_use_precompiled(atelier_${name} library)
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
    if(ATELIER_SANITIZE AND NOT name MATCHES "^(ops|world)_test$")  # those have long loops of their own
        target_compile_options(${name} PRIVATE ${ATELIER_TEST_OPTIONS})
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
    atelier_flags(atelier_precompiled_library)
endif()
