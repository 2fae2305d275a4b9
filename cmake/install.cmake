# cmake --install, and find_package(lamina) for projects outside.
include(CMakePackageConfigHelpers)

install(TARGETS lamina_core lamina_probes lamina_patching lamina_circuits EXPORT laminaTargets
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS lamina_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
foreach(part core probes patching circuits)
  install(DIRECTORY ${part}/include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
endforeach()
install(EXPORT laminaTargets NAMESPACE lamina:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/lamina)
configure_package_config_file(cmake/laminaConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/laminaConfig.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/lamina)
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/laminaConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/laminaConfig.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/laminaConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/lamina)
# The shipped models, word lists, sentences and questions: `lamina info organism` works from the installed program.
install(DIRECTORY data/organism data/planted data/words data/pairs data/questions DESTINATION ${CMAKE_INSTALL_DATADIR}/lamina
        PATTERN "*.py" EXCLUDE PATTERN "__pycache__" EXCLUDE)
