#!/usr/bin/env bash
# Installs what building and running Atelier needs on Debian or Ubuntu, or says what is missing.
#   scripts/setup.sh [build|slurm|cuda|opencv|checks]...     default: build
# checks: Clang with its sanitizers, libFuzzer and clang-tidy.
# cuda: the header-only C++ frontend of cuDNN, where there is a CUDA toolkit; without it the CUDA backend is left out.
set -euo pipefail

build_packages=(g++ cmake ninja-build ccache pkg-config git
    libopenmpi-dev openmpi-bin libhdf5-dev hdf5-tools libdnnl-dev libboost-program-options-dev libtomlplusplus-dev
    libfmt-dev libspdlog-dev nlohmann-json3-dev libpng-dev libcurl4-openssl-dev libpcre2-dev libutf8proc-dev libxxhash-dev
    libgtest-dev libgmock-dev libbenchmark-dev libboost-context-dev python3-minimal)
checks_packages=(clang clang-tidy libclang-rt-dev libomp-dev)
opencv_packages=(libopencv-core-dev libopencv-imgproc-dev libopencv-objdetect-dev)  # reward.identity = "opencv"
slurm_packages=(slurmctld slurmd slurm-client munge libpmix-dev)

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

wanted=()
for kind in "${@:-build}"; do
    case $kind in
        build) wanted+=("${build_packages[@]}") ;;
        slurm) wanted+=("${slurm_packages[@]}") ;;
        opencv) wanted+=("${opencv_packages[@]}") ;;
        checks) wanted+=("${checks_packages[@]}") ;;
        cuda) fetch_cudnn_frontend ;;
        *) echo "setup: unknown kind '$kind' (build, slurm, cuda, opencv or checks)" >&2; exit 2 ;;
    esac
done

missing=()
for package in "${wanted[@]}"; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
((${#missing[@]} == 0)) && exit 0

as_root=()
if ((EUID != 0)); then
    if sudo -n true 2>/dev/null; then as_root=(sudo -n); else
        echo "setup: missing packages, and no right to install them. Ask for:" >&2
        echo "    apt-get install ${missing[*]}" >&2
        exit 1
    fi
fi
echo "setup: installing ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
