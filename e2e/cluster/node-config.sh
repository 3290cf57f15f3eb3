# What a node's programs are told, whether it is this machine or a guest. Sourced. NODE is set by who sources it.

# containerd_config: Debian's containerd 1.6 with runc; what this machine's root may not do is left out.
containerd_config() {
  cat <<'Y'
version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  disable_apparmor = true
  tolerate_missing_hugetlb_controller = true
  disable_hugetlb_controller = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
Y
}

cni_config() {
  cat <<'Y'
{ "cniVersion": "0.4.0", "name": "e2e", "plugins": [
  { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
    "ipam": { "type": "host-local", "dataDir": "/run/cni-ipam",
              "ranges": [[{ "subnet": "10.96.64.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }] } } ] }
Y
}

# kubelet_config PKI
kubelet_config() {
  cat <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $1/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
tlsCertFile: $1/kubelet-serving.crt
tlsPrivateKeyFile: $1/kubelet-serving.key
staticPodPath: /etc/kubernetes/manifests
makeIPTablesUtilChains: false
resolvConf: /etc/kubernetes/resolv.conf
clusterDomain: cluster.local
clusterDNS: [10.96.0.10]
syncFrequency: 10s
evictionHard: {memory.available: 64Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%, imagefs.inodesFree: 1%}
imageGCHighThresholdPercent: 100
Y
}
