# Installs the build tree into a fresh prefix, then configures, builds and runs the consumer project against it.
cmake_minimum_required(VERSION 3.22)
function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ECHO STDOUT RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "exit status ${status}: ${ARGN}")
  endif()
endfunction()

set(prefix ${WORK_DIR}/prefix)
set(build ${WORK_DIR}/build)
file(REMOVE_RECURSE ${prefix} ${build})

run(${CMAKE_COMMAND} --install ${BUILD_DIR} --config ${CONFIG} --prefix ${prefix})
run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${build} -G ${GENERATOR}
    -D CMAKE_BUILD_TYPE=${CONFIG} -D CMAKE_CXX_COMPILER=${CXX_COMPILER} -D CMAKE_PREFIX_PATH=${prefix}
    -D USE_ENGINE=${ENGINE})
run(${CMAKE_COMMAND} --build ${build} --config ${CONFIG})
run(${build}/use_core)
if(ENGINE)
  run(${build}/use_engine ${prefix}/share/snapmla/models/tiny-mla)
endif()
if(PROGRAM)
  run(${prefix}/bin/snapmla --version)
endif()
