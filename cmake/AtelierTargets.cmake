# atelier_library(NAME SOURCES ... [DEPENDS ...]): static library atelier_NAME, alias atelier::NAME.
function(atelier_library name)
    cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS" ${ARGN})
    add_library(atelier_${name} STATIC ${ARG_SOURCES})
    add_library(atelier::${name} ALIAS atelier_${name})
    target_include_directories(atelier_${name} PUBLIC ${CMAKE_SOURCE_DIR}/lib ${CMAKE_SOURCE_DIR})
    target_link_libraries(atelier_${name} PUBLIC ${ARG_DEPENDS})
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
