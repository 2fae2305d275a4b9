# cmake -DBUILD=… -DSOURCE=… -DWORK=… -DCXX=… -DCC=… -DGENERATOR=… -DCONFIG=… -P installed_package.cmake

function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT status EQUAL 0)
    list(JOIN ARGV " " command)
    message(FATAL_ERROR "${command}\nfailed (${status}):\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix --config "${CONFIG}")

# Nothing of the source or build tree may be needed by, or named in, what was installed.
file(GLOB_RECURSE package ${WORK}/prefix/lib*/cmake/lamina/*.cmake)
if(NOT package)
  message(FATAL_ERROR "no package files under ${WORK}/prefix")
endif()
foreach(file ${package})
  file(READ ${file} text)
  foreach(tree "${SOURCE}/core" "${SOURCE}/probes" "${BUILD}/")
    string(FIND "${text}" "${tree}" at)
    if(NOT at EQUAL -1)
      message(FATAL_ERROR "${file} names ${tree}")
    endif()
  endforeach()
endforeach()

# The example as an outside project, from a copy; beside it, a source that includes every header.
file(COPY ${SOURCE}/examples/custom_probe DESTINATION ${WORK})
file(GLOB_RECURSE headers RELATIVE ${WORK}/prefix/include ${WORK}/prefix/include/lamina/*.h)
list(LENGTH headers count)
if(count LESS 20)
  message(FATAL_ERROR "only ${count} headers were installed")
endif()
set(units "")
foreach(header ${headers})
  string(MAKE_C_IDENTIFIER ${header} name)
  file(WRITE ${WORK}/custom_probe/headers/${name}.cpp "#include <${header}>\n#include <${header}>\n")
  string(APPEND units "  headers/${name}.cpp\n")
endforeach()
file(APPEND ${WORK}/custom_probe/CMakeLists.txt
     "add_library(every_header OBJECT\n${units})\ntarget_link_libraries(every_header PRIVATE lamina::probes)\n")

set(flags "")
if(SANITIZE)
  set(flags -DCMAKE_CXX_FLAGS=-fsanitize=address,undefined)
endif()
run(${CMAKE_COMMAND} -S ${WORK}/custom_probe -B ${WORK}/build -G ${GENERATOR}
    -DCMAKE_PREFIX_PATH=${WORK}/prefix -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_C_COMPILER=${CC}
    -DCMAKE_BUILD_TYPE=${CONFIG} ${flags})
run(${CMAKE_COMMAND} --build ${WORK}/build)

# The second example, in its own project.
run(${CMAKE_COMMAND} -S ${SOURCE}/examples/head_effects -B ${WORK}/build_effects -G ${GENERATOR}
    -DCMAKE_PREFIX_PATH=${WORK}/prefix -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_C_COMPILER=${CC}
    -DCMAKE_BUILD_TYPE=${CONFIG} ${flags})
run(${CMAKE_COMMAND} --build ${WORK}/build_effects)
run(${WORK}/build_effects/head_effects ${SOURCE}/data/planted/induction 1 2 3 1)
if(NOT output MATCHES "layer\thead\testimate\texact\n0\t0\t[0-9.e+-]+\t[0-9.e+-]+\n")
  message(FATAL_ERROR "unexpected output:\n${output}")
endif()

# It runs, and says something about every layer of a model that comes with the project.
run(${WORK}/build/custom_probe ${SOURCE}/data/planted/induction ${WORK}/results.h5 1 2 3 1)
if(NOT output MATCHES "layer 0\t[0-9.e+-]+\nlayer 1\t[0-9.e+-]+\n")
  message(FATAL_ERROR "unexpected output:\n${output}")
endif()
if(NOT EXISTS ${WORK}/results.h5)
  message(FATAL_ERROR "no results were written")
endif()
execute_process(COMMAND ${WORK}/build/custom_probe ${WORK}/nothing.h5 ${WORK}/none.h5
                RESULT_VARIABLE status ERROR_VARIABLE message OUTPUT_QUIET)
if(NOT status EQUAL 1 OR NOT message MATCHES "custom_probe: .*nothing.h5")
  message(FATAL_ERROR "a missing recording gave status ${status}: ${message}")
endif()
