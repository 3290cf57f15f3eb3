{{- define "pathwatch.name" -}}
{{- .Values.fullnameOverride | default (ternary .Release.Name (printf "%s-pathwatch" .Release.Name) (contains "pathwatch" .Release.Name)) | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "pathwatch.labels" -}}
app.kubernetes.io/name: pathwatch
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* Labels that select the pods of one component: (dict "root" . "component" "sensor") */ -}}
{{- define "pathwatch.selector" -}}
app.kubernetes.io/name: pathwatch
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "pathwatch.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "pathwatch.seccomp" -}}
{{- if hasPrefix "Localhost/" .Values.seccompProfile -}}
{type: Localhost, localhostProfile: {{ trimPrefix "Localhost/" .Values.seccompProfile | quote }}}
{{- else -}}
{type: {{ .Values.seccompProfile }}}
{{- end }}
{{- end }}

{{- /* Errors that a schema cannot tell, each with the line to add. */ -}}
{{- define "pathwatch.check" -}}
{{- if not .Values.cluster.name }}
{{- fail "\n\ncluster.name is missing: alerts of several clusters are read together, and must say which one they are of.\nAdd:  --set cluster.name=production\n" }}
{{- end }}
{{- if and (eq .Values.sink "kafka") (not .Values.kafka.brokers) }}
{{- fail "\n\nkafka.brokers is missing: there is nowhere to send alerts.\nAdd:  --set 'kafka.brokers={kafka-0.example:9092}'   or, to read alerts with kubectl logs:  --set sink=stdout\n" }}
{{- end }}
{{- with .Values.kafka.sasl }}
{{- if and .mechanism (not (and .username .existingSecret)) }}
{{- fail (printf "\n\nkafka.sasl.mechanism is %s, which needs kafka.sasl.username and kafka.sasl.existingSecret.\nAdd:  --set kafka.sasl.username=sensor --set kafka.sasl.existingSecret=kafka   (a Secret with the key 'password')\n" .mechanism) }}
{{- end }}
{{- end }}
{{- with .Values.kafka.tls }}
{{- if and (or .certificateKey .privateKeyKey) (not (and .certificateKey .privateKeyKey .existingSecret)) }}
{{- fail "\n\na certificate of the sensor's own needs kafka.tls.existingSecret, kafka.tls.certificateKey and kafka.tls.privateKeyKey together.\n" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "pathwatch.tls" -}}
{{- $tls := .Values.kafka.tls }}
{{- $files := dict }}
{{- if $tls.existingSecret }}
{{- if $tls.caKey }}{{ $_ := set $files "ca_file" (printf "/etc/pathwatch/tls/%s" $tls.caKey) }}{{ end }}
{{- if $tls.certificateKey }}
{{- $_ := set $files "certificate_file" (printf "/etc/pathwatch/tls/%s" $tls.certificateKey) }}
{{- $_ := set $files "key_file" (printf "/etc/pathwatch/tls/%s" $tls.privateKeyKey) }}
{{- end }}
{{- else }}
{{- $_ := set $files "ca_file" "/etc/ssl/certs/ca-certificates.crt" }}
{{- end }}
{{- toYaml $files }}
{{- end }}

{{- /* pathwatch.yaml */ -}}
{{- define "pathwatch.config" -}}
{{- $kafka := dict }}
{{- if eq .Values.sink "kafka" }}
{{- $kafka = dict "brokers" .Values.kafka.brokers "topic" .Values.kafka.topic "key" .Values.kafka.key }}
{{- if .Values.kafka.systemTopic }}{{ $_ := set $kafka "system_topic" .Values.kafka.systemTopic }}{{ end }}
{{- if .Values.kafka.tls.enabled }}{{ $_ := set $kafka "tls" (include "pathwatch.tls" . | fromYaml) }}{{ end }}
{{- with .Values.kafka.sasl }}
{{- if .mechanism }}
{{- $_ := set $kafka "sasl" (dict "mechanism" .mechanism "username" .username "password_file" (printf "/etc/pathwatch/sasl/%s" .passwordKey)) }}
{{- end }}
{{- end }}
{{- end }}
{{- $ship := dict "sink" .Values.sink "format" .Values.format "state_dir" "/var/lib/pathwatch" "spool" (dict "max_bytes" .Values.spool.maxBytes) }}
{{- if $kafka }}{{ $_ := set $ship "kafka" $kafka }}{{ end }}
{{- $policies := dict "directory" "/etc/pathwatch/policies" "resources" .Values.policies.resources }}
{{- if ne .Values.policies.library "none" }}
{{- $_ := set $policies "library" (dict "directory" "/policies" "severity" .Values.policies.library) }}
{{- end }}
{{- if .Values.policies.overrides }}{{ $_ := set $policies "overrides" .Values.policies.overrides }}{{ end }}
{{- $http := dict "listen" (printf "[::]:%v" .Values.port) }}
{{- if .Values.controller.enabled }}
{{- $_ := set $http "controller" (printf "system:serviceaccount:%s:%s-controller" .Release.Namespace (include "pathwatch.name" .)) }}
{{- end }}
{{- $config := dict "cluster" (dict "name" .Values.cluster.name) "policies" $policies "ship" $ship "http" $http
      "enrich" (dict "proc" "/host/proc" "cgroups" "/host/sys/fs/cgroup") "log" (dict "level" .Values.logLevel) }}
{{- mergeOverwrite $config .Values.config | toYaml }}
{{- end }}
