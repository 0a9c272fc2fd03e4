# Fetches the SEAL 4.1.2 source at build time: it lies unmodified inside the sdist of Pyfhel 3.5.0.
# Only functions here, so that tests can include this file with `cmake -P`.

set(HESPLIT_SEAL_ARCHIVE pyfhel-3.5.0.tar.gz)
set(HESPLIT_SEAL_SHA256 0375b83b5a83026924f59db25c4efa9f27e1e8a66d004658f4d24195986a04b6)
set(HESPLIT_SEAL_ARCHIVE_TREE pyfhel-3.5.0/Pyfhel/backend/SEAL)

# Folder that keeps the archive between builds.
function(hesplit_seal_cache_dir result)
  if(HESPLIT_CACHE_DIR)
    set(directory "${HESPLIT_CACHE_DIR}")
  elseif(NOT "$ENV{HESPLIT_CACHE_DIR}" STREQUAL "")
    set(directory "$ENV{HESPLIT_CACHE_DIR}")
  elseif(NOT "$ENV{XDG_CACHE_HOME}" STREQUAL "")
    set(directory "$ENV{XDG_CACHE_HOME}/hesplit_native/seal")
  elseif(NOT "$ENV{HOME}" STREQUAL "")
    set(directory "$ENV{HOME}/.cache/hesplit_native/seal")
  else()
    set(directory "${CMAKE_BINARY_DIR}/seal-cache")
  endif()
  string(REGEX REPLACE "^~/" "$ENV{HOME}/" directory "${directory}")
  cmake_path(ABSOLUTE_PATH directory BASE_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}" NORMALIZE)
  set(${result} "${directory}" PARENT_SCOPE)
endfunction()

# Stop with `problem`, followed by the ways to a SEAL that need no download.
function(hesplit_seal_fail problem)
  hesplit_seal_cache_dir(cache)
  message(FATAL_ERROR
    "${problem}\n"
    "What to do, one of:\n"
    "  - name a SEAL source tree (>= 4.1.2):\n"
    "      pip install . --config-settings=cmake.define.HESPLIT_SEAL_SOURCE_DIR=/path/to/SEAL\n"
    "  - on a machine with a network: pip download --no-deps --no-binary Pyfhel Pyfhel==3.5.0\n"
    "    and put ${HESPLIT_SEAL_ARCHIVE} into ${cache}\n"
    "    (another folder: environment variable HESPLIT_CACHE_DIR)\n"
    "  - install a static SEAL and name its prefix in the environment variable CMAKE_PREFIX_PATH\n"
    "then run the same command again.")
endfunction()

# Stop, and delete `archive`, unless it has the SHA-256 `expected`.
function(hesplit_seal_verify archive expected)
  file(SHA256 "${archive}" actual)
  if(NOT actual STREQUAL expected)
    file(REMOVE "${archive}")
    hesplit_seal_fail(
      "Wrong hash: ${archive} is damaged or not the file that hesplit_native was written for; "
      "it was deleted.\n  expected SHA-256 ${expected}\n  found            ${actual}\n"
      "Running the same command again fetches it anew.")
  endif()
endfunction()

# Fetch the archive with pip into `directory`.
# pip must prepare the metadata of what it downloads, which runs the sdist's setup.py (about 15 s).
# The hash in the requirements file makes pip refuse any other file before that.
function(hesplit_seal_download directory)
  message(STATUS "hesplit_native: fetching ${HESPLIT_SEAL_ARCHIVE} (holds SEAL 4.1.2) with pip")
  set(requirements "${directory}/requirements.txt")
  file(WRITE "${requirements}" "Pyfhel==3.5.0 --hash=sha256:${HESPLIT_SEAL_SHA256}\n")
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -m pip download --no-deps --no-binary Pyfhel --no-input
      --disable-pip-version-check --dest "${directory}" --requirement "${requirements}"
    RESULT_VARIABLE status OUTPUT_VARIABLE log ERROR_VARIABLE log TIMEOUT 900)
  if(NOT status EQUAL 0)
    string(LENGTH "${log}" length)
    if(length GREATER 3000)
      string(SUBSTRING "${log}" 0 3000 log)
    endif()
    string(REPLACE "\n" "\n  | " log "\n${log}")
    if(log MATCHES "DO NOT MATCH THE HASHES")
      set(reason "pip got a file with the wrong hash and refused it")
    elseif(log MATCHES "No module named pip")
      set(reason "${Python_EXECUTABLE} has no pip")
    else()
      set(reason "pip could not fetch it (no network, or an index without Pyfhel?)")
    endif()
    file(REMOVE_RECURSE "${directory}")
    hesplit_seal_fail("No SEAL source: ${reason}.\npip said:${log}")
  endif()
endfunction()

# Whether files can be made in `directory`, which is made if it is missing.
function(hesplit_seal_writable directory result)
  set(status 1)
  execute_process(COMMAND "${CMAKE_COMMAND}" -E make_directory "${directory}"
    RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET)
  if(status EQUAL 0)
    execute_process(COMMAND "${CMAKE_COMMAND}" -E touch "${directory}/lock"
      RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET)
  endif()
  string(COMPARE EQUAL "${status}" 0 writable)
  set(${result} ${writable} PARENT_SCOPE)
endfunction()

# Put the verified archive into the cache folder, from there or from the network; return its path.
function(hesplit_seal_archive result)
  hesplit_seal_cache_dir(cache)
  set(archive "${cache}/${HESPLIT_SEAL_ARCHIVE}")
  hesplit_seal_writable("${cache}" writable)
  if(NOT writable AND EXISTS "${archive}")
    hesplit_seal_verify("${archive}" ${HESPLIT_SEAL_SHA256})
    set(${result} "${archive}" PARENT_SCOPE)
    return()
  elseif(NOT writable)
    # A container's user has no home, or the home of somebody else: the build folder will do.
    message(STATUS "hesplit_native: ${cache} cannot be written; the archive stays in the build folder")
    set(cache "${CMAKE_BINARY_DIR}/seal-cache")
    set(archive "${cache}/${HESPLIT_SEAL_ARCHIVE}")
    file(MAKE_DIRECTORY "${cache}")
  endif()
  # Builds side by side: the first fetches, the others wait. Where locking fails (some network
  # file systems) each fetches for itself, and the rename below is still atomic.
  file(LOCK "${cache}/lock" GUARD FUNCTION TIMEOUT 900 RESULT_VARIABLE ignored)
  if(NOT EXISTS "${archive}")
    string(RANDOM LENGTH 12 suffix)
    set(staging "${cache}/staging-${suffix}")
    hesplit_seal_download("${staging}")
    hesplit_seal_verify("${staging}/${HESPLIT_SEAL_ARCHIVE}" ${HESPLIT_SEAL_SHA256})
    file(RENAME "${staging}/${HESPLIT_SEAL_ARCHIVE}" "${archive}")
    file(REMOVE_RECURSE "${staging}")
  endif()
  hesplit_seal_verify("${archive}" ${HESPLIT_SEAL_SHA256})
  set(${result} "${archive}" PARENT_SCOPE)
endfunction()

# Unpack SEAL into the build folder, once; return the path of its source tree.
function(hesplit_seal_unpack result)
  set(tree "${CMAKE_BINARY_DIR}/seal-source/${HESPLIT_SEAL_SHA256}")
  if(NOT EXISTS "${tree}")
    hesplit_seal_archive(archive)
    set(staging "${tree}.part")
    file(REMOVE_RECURSE "${staging}")
    file(ARCHIVE_EXTRACT INPUT "${archive}" DESTINATION "${staging}"
      PATTERNS "${HESPLIT_SEAL_ARCHIVE_TREE}/*")
    file(RENAME "${staging}/${HESPLIT_SEAL_ARCHIVE_TREE}" "${tree}")
    file(REMOVE_RECURSE "${staging}")
  endif()
  set(${result} "${tree}" PARENT_SCOPE)
endfunction()
