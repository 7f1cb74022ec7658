#!/usr/bin/env bash
# Installs what building and running Atelier needs on Debian or Ubuntu, or says what is missing.
#   scripts/setup.sh [build|slurm|cuda|opencv|checks|python]...     default: build
# checks: Clang with its sanitizers, libFuzzer and clang-tidy.
# python: a Python with the packages of scripts/python-packages.txt, several GB in the cache folder, made once; the last line on
# standard output is its path.
# cuda: the header-only C++ frontend of cuDNN, where there is a CUDA toolkit; without it the CUDA backend is left out.
set -euo pipefail

build_packages=(g++ cmake ninja-build ccache pkg-config git
    libopenmpi-dev openmpi-bin libhdf5-dev hdf5-tools libdnnl-dev libboost-program-options-dev libtomlplusplus-dev
    libfmt-dev libspdlog-dev nlohmann-json3-dev libpng-dev libcurl4-openssl-dev libpcre2-dev libutf8proc-dev libxxhash-dev
    libgtest-dev libgmock-dev libbenchmark-dev libboost-context-dev python3)
checks_packages=(clang clang-tidy libclang-rt-dev libomp-dev)
opencv_packages=(libopencv-core-dev libopencv-imgproc-dev libopencv-objdetect-dev)  # reward.identity = "opencv"
slurm_packages=(slurmctld slurmd slurm-client munge libpmix-dev procps)

cudnn_frontend_version=1.32.0

# Into the cache folder where CMake looks (cmake/AtelierCuda.cmake).
fetch_cudnn_frontend() {
    local folder=${XDG_CACHE_HOME:-$HOME/.cache}/atelier/cudnn-frontend download
    command -v nvcc >/dev/null || [[ -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]] || return 0
    [[ -f $folder/include/cudnn_frontend.h ]] && return 0
    download=$(mktemp -d)
    if python3 -m pip download --quiet --no-deps -d "$download" "nvidia-cudnn-frontend==$cudnn_frontend_version"; then
        mkdir -p "$folder"
        python3 -m zipfile -e "$download"/*.whl "$folder"
    else
        echo "setup: nvidia-cudnn-frontend $cudnn_frontend_version cannot be had: the CUDA backend will be left out" >&2
    fi
    rm -rf "$download"
}

# A virtual environment in the cache folder; one that is there with the same packages stays as it is.
make_python() {
    local here=${BASH_SOURCE[0]%/*} folder=${XDG_CACHE_HOME:-$HOME/.cache}/atelier/python
    mkdir -p "$folder"
    exec 9>"$folder/lock"
    flock 9
    if ! cmp -s "$here/python-packages.txt" "$folder/installed.txt"; then
        rm -rf "$folder/venv" "$folder/installed.txt"
        echo "setup: installing the packages of scripts/python-packages.txt into $folder" >&2
        if ! { python3 -m venv "$folder/venv" && "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-compile -r "$here/python-packages.txt"; } \
            >"$folder/log" 2>&1; then
            echo "setup: the Python packages could not be installed: $(grep -m 1 "^ERROR" "$folder/log" || tail -n 1 "$folder/log") ($folder/log)" >&2
            rm -rf "$folder/venv"
            return 1
        fi
        cp "$here/python-packages.txt" "$folder/installed.txt"
    fi
    flock -u 9
    echo "$folder/venv/bin/python"
}

wanted=() needs_python=false
for kind in "${@:-build}"; do
    case $kind in
        build) wanted+=("${build_packages[@]}") ;;
        slurm) wanted+=("${slurm_packages[@]}") ;;
        opencv) wanted+=("${opencv_packages[@]}") ;;
        checks) wanted+=("${checks_packages[@]}") ;;
        cuda) fetch_cudnn_frontend ;;
        python)
            needs_python=true
            python3 -c 'import ensurepip, venv' 2>/dev/null || wanted+=(python3-venv)
            ;;
        *) echo "setup: unknown kind '$kind' (build, slurm, cuda, opencv, checks or python)" >&2; exit 2 ;;
    esac
done

missing=()
for package in "${wanted[@]}"; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done

install_missing() {
    local as_root=()
    if ((EUID != 0)); then
        if sudo -n true 2>/dev/null; then as_root=(sudo -n); else
            echo "setup: missing packages, and no right to install them. Ask for:" >&2
            echo "    apt-get install ${missing[*]}" >&2
            exit 1
        fi
    fi
    echo "setup: installing ${missing[*]}" >&2
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
}
if ((${#missing[@]} > 0)); then install_missing; fi
if $needs_python; then make_python; fi
