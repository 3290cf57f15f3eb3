#!/usr/bin/env bash
# pki.sh DIRECTORY API-ADDRESS NODE NODE-ADDRESS   keys, certificates and kubeconfigs of a cluster that lives a day
set -euo pipefail
directory=$1 api=$2 node=$3 node_address=$4
mkdir -p "$directory"; cd "$directory"; umask 077

# certificate NAME CA SUBJECT USAGE [ALTERNATIVE-NAMES]
certificate() {
  openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"
  printf 'extendedKeyUsage=%s\nkeyUsage=critical,digitalSignature\n%s\n' "$4" "${5:+subjectAltName=$5}" >"$1.ext"
  openssl req -new -key "$1.key" -subj "$3" |
    openssl x509 -req -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -days 1 -extfile "$1.ext" -out "$1.crt" 2>/dev/null
}

authority() {
  openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"
  openssl req -x509 -new -key "$1.key" -subj "/CN=$1" -days 1 -out "$1.crt" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,digitalSignature
}

# kubeconfig NAME SUBJECT: whoever that is, with a certificate of his.
kubeconfig() {
  certificate "$1" ca "$2" clientAuth
  cat >"$1.conf" <<Y
apiVersion: v1
kind: Config
clusters: [{name: e2e, cluster: {server: "https://$api:443", certificate-authority-data: $(base64 -w0 ca.crt)}}]
users: [{name: me, user: {client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key")}}]
contexts: [{name: e2e, context: {cluster: e2e, user: me}}]
current-context: e2e
Y
}

authority ca
authority front-proxy-ca
openssl genrsa -out accounts.key 2048 2>/dev/null
openssl rsa -in accounts.key -pubout -out accounts.pub 2>/dev/null
certificate apiserver ca /CN=kube-apiserver serverAuth \
  "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:$api"
certificate apiserver-kubelet ca /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth
certificate front-proxy front-proxy-ca /CN=front-proxy-client clientAuth
certificate kubelet-serving ca "/O=system:nodes/CN=system:node:$node" serverAuth "DNS:$node,IP:$node_address"
kubeconfig admin /O=system:masters/CN=admin
kubeconfig controllers /CN=system:kube-controller-manager
kubeconfig scheduler /CN=system:kube-scheduler
kubeconfig kubelet "/O=system:nodes/CN=system:node:$node"
