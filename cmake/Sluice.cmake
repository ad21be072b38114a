# Build rules that every folder shares.

set(SLUICE_WARNINGS -Wall -Wextra -Wno-unused-parameter)
if(SLUICE_WERROR)
  list(APPEND SLUICE_WARNINGS -Werror)
endif()
add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:${SLUICE_WARNINGS}>")
if(SLUICE_SANITIZE)
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-sanitize=vptr,function -fno-omit-frame-pointer)
  # libstdc++'s own checks: an index past a vector's size but within its capacity is no bad address.
  add_compile_definitions(_GLIBCXX_ASSERTIONS)
  add_link_options(-fsanitize=address,undefined)
  # Each executable compiles in what the sanitizers' runtimes are told.
  add_library(sluice-sanitizer-options INTERFACE)
  target_sources(sluice-sanitizer-options INTERFACE
    "$<$<STREQUAL:$<TARGET_PROPERTY:TYPE>,EXECUTABLE>:${CMAKE_CURRENT_LIST_DIR}/SanitizerOptions.cpp>")
  link_libraries(sluice-sanitizer-options)
endif()

find_program(SLUICE_CCACHE ccache)
if(SLUICE_CCACHE)
  # A precompiled header makes every file look changed unless ccache is told what not to look at.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${SLUICE_CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${SLUICE_CCACHE})
  if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
    add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:SHELL:-Xclang -fno-pch-timestamp>")
  endif()
endif()

# A static library of the compiler: may use MLIR and LLVM (shared), no RTTI as they have none.
#   sluice_add_library(NAME SOURCES a.cpp ... [LINK libs ...])
function(sluice_add_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_compile_options(${name} PRIVATE -fno-rtti)
  target_link_libraries(${name} PUBLIC ${ARG_LINK} MLIR LLVM)
  sluice_use_pch(${name})
endfunction()

# An executable of the compiler, same rules.
function(sluice_add_executable name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  # Compiled as the precompiled header is: -fPIE would not match it.
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
  target_compile_options(${name} PRIVATE -fno-rtti -fPIC)
  target_link_libraries(${name} PRIVATE ${ARG_LINK} MLIR LLVM)
  sluice_use_pch(${name})
endfunction()

function(sluice_use_pch name)
  if(NOT TARGET sluice-pch)
    file(GENERATE OUTPUT ${CMAKE_BINARY_DIR}/pch.cpp CONTENT "")
    add_library(sluice-pch OBJECT ${CMAKE_BINARY_DIR}/pch.cpp)
    target_compile_options(sluice-pch PRIVATE -fno-rtti)
    target_precompile_headers(sluice-pch PRIVATE ${CMAKE_SOURCE_DIR}/cmake/pch.h)
  endif()
  target_precompile_headers(${name} REUSE_FROM sluice-pch)
  # Any file of the compiler may include a dialect's generated header.
  add_dependencies(${name} sluice-headers)
endfunction()
