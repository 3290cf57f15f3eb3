# A node in a QEMU guest with a Debian kernel: fentry works there, and cgroups are v2 alone. Sourced by cluster.sh.
KERNEL=6.12 MODULES="failover net_failover virtio_net llc stp bridge veth overlay virtio_blk"

# guest_initrd DIRECTORY ARCHIVE: what finds the disk.
guest_initrd() {
  mkdir -p "$1"/{bin,mod,root,proc,dev}
  cp "$cache/busybox" "$1/bin/busybox"
  cp "$cache/kernels/$KERNEL/modules/virtio_blk.ko" "$1/mod/"
  cat >"$1/init" <<'Y'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox insmod /mod/virtio_blk.ko
/bin/busybox mount -t ext4 -o noatime,nobarrier /dev/vda /root && /bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
Y
  chmod +x "$1/init"
  (cd "$1" && find . | cpio -o -H newc --quiet) >"$2"
}

# guest_root DIRECTORY: a root file system of busybox, containerd, runc and a kubelet.
guest_root() {
  local root=$1 name library module
  mkdir -p "$root"/{bin,sbin,proc,sys,dev,run,tmp,root,mod,images,usr/sbin,usr/bin,usr/local/bin,usr/lib/cni,lib64,lib/x86_64-linux-gnu} \
    "$root"/{var/lib/containerd,var/lib/kubelet,var/log/pods,etc/cni/net.d,etc/kubernetes/manifests}
  cp "$cache/busybox" "$root/bin/busybox"
  for name in $("$cache/busybox" --list); do [ "$name" = busybox ] || ln -sf /bin/busybox "$root/bin/$name"; done
  for module in $MODULES; do cp "$cache/kernels/$KERNEL/modules/$module.ko" "$root/mod/"; done
  cp /usr/sbin/runc "$root/usr/sbin/"
  cp /usr/bin/{containerd,containerd-shim-runc-v2,ctr} "$root/usr/bin/"
  cp /usr/lib/cni/{bridge,host-local,loopback} "$root/usr/lib/cni/"
  cp "$bin/cluster" "$root/usr/local/bin/kubelet"
  cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64/"
  for library in $(for name in /usr/sbin/runc /usr/bin/containerd /usr/bin/containerd-shim-runc-v2 /usr/bin/ctr /usr/lib/cni/bridge; do ldd "$name"; done |
    grep -o '/[^ ]*\.so[^ ]*' | sort -u); do cp -nL "$library" "$root/lib/x86_64-linux-gnu/" || true; done
  cp "$cache"/images/*.tar ${SENSOR_IMAGE:+"$SENSOR_IMAGE"} "$root/images/"
  cp -r "$pki" "$root/etc/kubernetes/pki"
  rm -f "$root"/etc/kubernetes/pki/{ca,accounts,admin,apiserver,controllers,scheduler}.key "$root"/etc/kubernetes/pki/{admin,controllers,scheduler}.conf
  containerd_config >"$root/etc/kubernetes/containerd.toml"
  cni_config >"$root/etc/cni/net.d/10-e2e.conflist"
  kubelet_config /etc/kubernetes/pki >"$root/etc/kubernetes/kubelet.yaml"
  : >"$root/etc/kubernetes/resolv.conf"
  echo root:x:0:0:root:/root:/bin/sh >"$root/etc/passwd"
  printf 'root:*:19000:0:99999:7:::\n' >"$root/etc/shadow"
  cp /etc/os-release "$root/etc/"
  echo "127.0.0.1 localhost $NODE" >"$root/etc/hosts"
  echo "$NODE" | md5sum | cut -c1-32 >"$root/etc/machine-id"
  cat >"$root/sbin/init" <<Y
#!/bin/busybox sh
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run; mount -t tmpfs tmp /tmp; mount -t cgroup2 cgroup2 /sys/fs/cgroup; mount -t bpf bpf /sys/fs/bpf
mount -t securityfs security /sys/kernel/security; mount -t tracefs tracing /sys/kernel/tracing
mount --make-rshared /
for module in $MODULES; do [ \$module = virtio_blk ] || insmod /mod/\$module.ko || echo "no module \$module"; done
hostname $NODE
ip link set lo up; ip addr add $NODE_IP/16 dev eth0; ip link set eth0 up; ip route add default via $API
echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv4/conf/eth0/proxy_arp
# Commands for the node come in by the second serial line, one a line; see guest_command in cluster.sh.
guest_commands() {
  while read -r id command; do
    sh -c "\$command" >/tmp/out 2>&1 </dev/null; status=\$?
    { echo; echo "BEGIN \$id"; base64 /tmp/out; echo "END \$id \$status"; } >/dev/ttyS1
  done </dev/ttyS1
}
stty -F /dev/ttyS1 raw -echo
guest_commands &
containerd --config /etc/kubernetes/containerd.toml >/var/log/containerd.log 2>&1 &
until ctr version >/dev/null 2>&1; do sleep 0.2; done
for image in /images/*.tar; do ctr -n k8s.io images import \$image >/dev/null; done
kubelet --config /etc/kubernetes/kubelet.yaml --kubeconfig /etc/kubernetes/pki/kubelet.conf --hostname-override $NODE --node-ip $NODE_IP --v=2 >/var/log/kubelet.log 2>&1 &
while :; do wait; sleep 1; done
Y
  chmod +x "$root/sbin/init"
}

guest_node() {
  guest_initrd "$run/initrd" "$run/initrd.cpio"
  guest_root "$run/root"
  truncate -s 3G "$run/root.img"
  mkfs.ext4 -q -F -O ^has_journal -d "$run/root" "$run/root.img"
  rm -rf "$run/root"
  start qemu nsenter --net="$run/net" qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu max -smp 2 -m 2048 -display none -no-reboot -nodefaults \
    -kernel "$cache/kernels/$KERNEL/vmlinuz" -initrd "$run/initrd.cpio" \
    -append "console=ttyS0 quiet panic=-1 mitigations=off nokaslr cgroup_no_v1=all lsm=landlock,lockdown,yama,bpf" \
    -drive file="$run/root.img",if=virtio,format=raw,cache=unsafe -serial file:"$run/log/guest" \
    -serial unix:"$run/console.sock",server=on,wait=off \
    -netdev user,id=n,net=10.96.0.0/16,host=$API,dhcpstart=10.96.255.100,hostfwd=tcp:$NODE_IP:10250-$NODE_IP:10250 \
    -device virtio-net-pci,netdev=n
  touch "$run/is-guest"
  until_true 60 "the guest is started" test -S "$run/console.sock"
}
