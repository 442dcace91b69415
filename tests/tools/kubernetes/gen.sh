#!/usr/bin/env bash
# Writes go.mod for Kubernetes' own binaries. k8s.io/kubernetes requires its staging modules at v0.0.0, so each of
# them is replaced by the published module of the same minor version. Run it after changing VERSION, commit the result.
set -euo pipefail
cd "$(dirname "$0")"
VERSION=${1:?version of Kubernetes without the v, such as 1.36.1}
STAGING=0.${VERSION#1.}

upstream=$(go mod download -json "k8s.io/kubernetes@v$VERSION" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')
{
  printf 'module weft.test/kubernetes\n\ngo 1.26.0\n\ntool (\n'
  printf '\tk8s.io/kubernetes/cmd/%s\n' kube-apiserver kube-controller-manager kubectl
  printf ')\n\nrequire k8s.io/kubernetes v%s\n\nreplace (\n' "$VERSION"
  grep -oE '^\s+k8s.io/[a-z0-9-]+ v0\.0\.0( |$)' "$upstream" | awk '{print $1}' | sort -u |
    while read -r module; do printf '\t%s => %s v%s\n' "$module" "$module" "$STAGING"; done
  printf ')\n'
} > go.mod
go mod tidy
