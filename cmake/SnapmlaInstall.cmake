# cmake --install: headers, libraries, the bundled model, docs and licence, and the package files behind
#     find_package(snapmla 0.1 COMPONENTS core engine)      -> snapmla::core, snapmla::engine
# Each component has its own export set, so that a user of the attention core needs none of the engine's dependencies.
include(CMakePackageConfigHelpers)

set(SNAPMLA_PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/snapmla)
set(SNAPMLA_COMPONENTS core)
if(SNAPMLA_BUILD_ENGINE)
  list(APPEND SNAPMLA_COMPONENTS engine)
endif()
foreach(component IN LISTS SNAPMLA_COMPONENTS)
  set_target_properties(snapmla_${component} PROPERTIES EXPORT_NAME ${component})
  install(TARGETS snapmla_${component} EXPORT snapmla-${component})
  install(EXPORT snapmla-${component} NAMESPACE snapmla:: DESTINATION ${SNAPMLA_PACKAGE_DIR})
endforeach()

configure_package_config_file(cmake/snapmlaConfig.cmake.in ${PROJECT_BINARY_DIR}/snapmlaConfig.cmake
                              INSTALL_DESTINATION ${SNAPMLA_PACKAGE_DIR})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/snapmlaConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/snapmlaConfig.cmake ${PROJECT_BINARY_DIR}/snapmlaConfigVersion.cmake
        DESTINATION ${SNAPMLA_PACKAGE_DIR})

install(DIRECTORY include/snapmla ${PROJECT_BINARY_DIR}/include/snapmla DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.h")
install(DIRECTORY models/tiny-mla DESTINATION ${CMAKE_INSTALL_DATADIR}/snapmla/models)
install(DIRECTORY docs/ DESTINATION ${CMAKE_INSTALL_DOCDIR} FILES_MATCHING PATTERN "*.md")
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
