# Functions of the build stages. What these leave behind is /opt/venv, the pinned packages, and /opt/stage, which is on its path.
# pip itself is run out of /build, and so gets into no image.
set -eu
cd /build
export PIP_CONFIG_FILE=/build/pip.conf PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
python=/opt/venv/bin/python

pip() {
    PYTHONPATH=/build $python -m pip --quiet "$@"
}

new_venv() {
    python3 -m venv --without-pip /opt/venv
    mkdir /opt/stage
    echo /opt/stage > "$(echo /opt/venv/lib/python3*/site-packages)/stage.pth"
}

# The lines NAME==VERSION of the standard input, each file by its hash; further words are options of pip install.
install_pinned() {
    awk 'NR == FNR { wanted[$1]; next } /^[^ ]/ { found = $1 in wanted } found' - constraints.hashes.txt > pinned.txt
    pip install --no-deps --require-hashes --requirement pinned.txt "$@"
    # What no stage reads: tests, and the descriptions of AWS's services but for S3 and for logging in.
    find /opt -type d -name tests -prune -exec rm -r {} +
    for service in /opt/venv/lib/python3*/site-packages/botocore/data/*/; do
        case $(basename "$service") in s3 | sts | sso | sso-oidc | signin) ;; *) rm -r "$service" ;; esac
    done
}

# torch in the build that the words say, without its own test programs (133 MB). Of bin, torch_shm_manager alone is called at run time.
install_torch() {
    pip install "$@"
    for torch in /opt/venv/lib/python3*/site-packages/torch; do
        rm -rf "$torch/test"
        test ! -d "$torch/bin" || find "$torch/bin" -type f ! -name torch_shm_manager -delete
    done
}

# marble_core, and kfp of the version that compiles the pipelines, without its dependencies: a component's executor needs none.
install_marble() {
    pip install --no-deps --target /opt/stage "$@" marble_core-*.whl
    pip check
    grep -o '^kfp==[^ ]*' constraints.hashes.txt | install_pinned --target /opt/stage "$@"
}

# Writes the bytecode of these modules and of what they import, which a read-only image cannot do later.
compile_imports() {
    for module in "$@"; do _KFP_RUNTIME=true $python -c "import $module"; done
}

# The team's own wheels, which make images EXTRA=... brings: "all" that they need too, or "alone".
install_extra() {
    PYTHONPATH=/build $python /build/install_extra.py "$1" /build/extra /opt/stage
}
