{{/* SPDX-License-Identifier: Apache-2.0 */}}
{{/*
`bristle install` renders these files without Helm, with the constructs that agent/chart/template.py
knows. It refuses others, so keep to them.
*/}}

{{- define "bristle.selector" -}}
app.kubernetes.io/name: bristle
app.kubernetes.io/component: agent
{{- end }}

{{- define "bristle.labels" -}}
{{ include "bristle.selector" . }}
app.kubernetes.io/part-of: bristle
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "bristle.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* The agent's configuration file. Host paths are where the DaemonSet mounts them. */}}
{{- define "bristle.config" -}}
run_dir: /var/run/bristle
state_dir: /var/lib/bristle
bpffs_dir: /sys/fs/bpf/bristle
cgroup_root: /host/sys/fs/cgroup
source:
  kubernetes: in-cluster
routing:
  mode: {{ .Values.routingMode }}
  tunnel_port: {{ .Values.tunnelPort | int }}
  direct_node_routes: {{ .Values.autoDirectNodeRoutes }}
  {{- if or .Values.ipv4NativeRoutingCIDR .Values.ipv6NativeRoutingCIDR }}
  native_cidrs:
    {{- with .Values.ipv4NativeRoutingCIDR }}
    - {{ . | quote }}
    {{- end }}
    {{- with .Values.ipv6NativeRoutingCIDR }}
    - {{ . | quote }}
    {{- end }}
  {{- end }}
masquerade:
  enabled: {{ .Values.bpf.masquerade }}
  {{- with .Values.bpf.masqueradeExclude }}
  exclude:
    {{- range . }}
    - {{ . | quote }}
    {{- end }}
  {{- end }}
socket_redirect:
  enabled: {{ .Values.socketRedirect.enabled }}
  default: {{ .Values.socketRedirect.default | quote }}
  force: {{ .Values.socketRedirect.force }}
cni:
  conf_dir: /host/etc/cni/net.d
  exclusive: {{ .Values.cni.exclusive }}
  version: {{ .Values.cni.version | quote }}
  chaining_mode: {{ .Values.cni.chainingMode }}
  bin_dir: /host/opt/cni/bin
health:
  address: 127.0.0.1:{{ .Values.healthPort | int }}
{{- if .Values.prometheus.enabled }}
prometheus:
  address: ":{{ .Values.prometheus.port | int }}"
{{- end }}
{{- with .Values.devices }}
devices:
  {{- range . }}
  - {{ . | quote }}
  {{- end }}
{{- end }}
{{- if .Values.MTU }}
mtu: {{ .Values.MTU | int }}
{{- end }}
{{- with .Values.labels }}
labels:
  {{- range . }}
  - {{ . | quote }}
  {{- end }}
{{- end }}
{{- with .Values.bpf }}
{{- if or .ctMax .policyMax .peersMax .endpointsMax }}
bpf:
  {{- with .ctMax }}
  ct_max: {{ . | int }}
  {{- end }}
  {{- with .policyMax }}
  policy_max: {{ . | int }}
  {{- end }}
  {{- with .peersMax }}
  peers_max: {{ . | int }}
  {{- end }}
  {{- with .endpointsMax }}
  endpoints_max: {{ . | int }}
  {{- end }}
{{- end }}
{{- end }}
identity:
  gc_interval: {{ .Values.identity.gcInterval | quote }}
  grace: {{ .Values.identity.grace | quote }}
  rest: {{ .Values.identity.rest | quote }}
log_level: {{ .Values.logLevel }}
trace: {{ .Values.trace }}
{{- with .Values.extraConfig }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What the agent may do and what it sees of the host; the clean-up needs the same. */}}
{{- define "bristle.agentRights" -}}
env:
  - name: NODE_NAME
    valueFrom:
      fieldRef:
        fieldPath: spec.nodeName
  - name: BRISTLE_NAMESPACE
    valueFrom:
      fieldRef:
        fieldPath: metadata.namespace
  # The container's own /proc/sys is read-only.
  - name: BRISTLE_PROC_SYS
    value: /host/proc/sys
  {{- if .Values.k8sServiceHost }}
  - name: KUBERNETES_SERVICE_HOST
    value: {{ .Values.k8sServiceHost | quote }}
  - name: KUBERNETES_SERVICE_PORT
    value: {{ .Values.k8sServicePort | int | quote }}
  {{- end }}
securityContext:
  privileged: false
  # The runtimes' default profile forbids writing below /sys/fs/bpf.
  appArmorProfile:
    type: Unconfined
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    # docs/deployment.md has the reason for each.
    add: [BPF, NET_ADMIN, PERFMON, SYS_ADMIN, SYS_RESOURCE]
terminationMessagePolicy: FallbackToLogsOnError
volumeMounts:
  - name: config
    mountPath: /etc/bristle
    readOnly: true
  - name: tmp
    mountPath: /tmp
  - name: run
    mountPath: /var/run/bristle
  - name: state
    mountPath: /var/lib/bristle
  - name: bpffs
    mountPath: /sys/fs/bpf
    mountPropagation: HostToContainer
  - name: cgroup
    mountPath: /host/sys/fs/cgroup
    readOnly: true
    mountPropagation: HostToContainer
  {{- if .Values.socketRedirect.enabled }}
  - name: netns
    mountPath: /run/netns
    readOnly: true
    mountPropagation: HostToContainer
  {{- end }}
  - name: sysctls
    mountPath: /host/proc/sys/net
  - name: cni-conf
    mountPath: /host/etc/cni/net.d
  {{- if eq .Values.cni.chainingMode "portmap" }}
  # Whether the plugin is there.
  - name: cni-bin
    mountPath: /host/opt/cni/bin
    readOnly: true
  {{- end }}
{{- end }}
