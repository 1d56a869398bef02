{{/* A StatefulSet's pods bear its name with a hash in a label of 63 characters, hence 40. */}}
{{- define "marble.fullname" -}}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- $name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "marble.profile" -}}{{ .Values.profile.namespace | default .Release.Namespace }}{{- end }}

{{/* Both take (list $ "component"). */}}
{{- define "marble.selector" -}}
app.kubernetes.io/name: {{ (index . 0).Chart.Name }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "marble.labels" -}}
{{- $ := index . 0 -}}
{{ include "marble.selector" . }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version }}
{{- end }}

{{/* (list $ "component" sidecar) */}}
{{- define "marble.podLabels" -}}
{{- $ := index . 0 -}}
{{- with $.Values.podLabels }}{{ toYaml . }}
{{ end -}}
{{ include "marble.selector" (list $ (index . 1)) }}
sidecar.istio.io/inject: {{ index . 2 | quote }}
{{- end }}

{{- define "marble.image" -}}
{{- $ := index . 0 -}}{{- $image := index $.Values.images (index . 1) -}}
{{- $registry := $.Values.imageRegistry | default $image.registry -}}
{{- $name := ternary (printf "%s/%s" $registry $image.repository) $image.repository (ne $registry "") -}}
{{- if $image.digest }}{{ $name }}@{{ $image.digest }}{{ else }}{{ $name }}:{{ $image.tag }}{{ end -}}
{{- end }}

{{/* What every pod has; (list $ uid serviceAccount). A name that a Service puts into the environment, such as
MLFLOW_PORT=tcp://..., would be read as an option, hence no service links. */}}
{{- define "marble.pod" -}}
{{- $ := index . 0 -}}
serviceAccountName: {{ index . 2 }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- $context := dict "runAsNonRoot" true "seccompProfile" (dict "type" "RuntimeDefault") }}
{{- if $.Values.fixedIds }}
{{- $context = merge $context (dict "runAsUser" (index . 1) "runAsGroup" (index . 1) "fsGroup" (index . 1) "fsGroupChangePolicy" "OnRootMismatch") }}
{{- end }}
securityContext: {{- toYaml (mergeOverwrite $context (deepCopy $.Values.podSecurityContext)) | nindent 2 }}
{{- with $.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" }}
{{- with index $.Values $key }}
{{ $key }}: {{ toJson . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "marble.container" -}}
imagePullPolicy: {{ .Values.imagePullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* The servers: whether the chart runs them, and their addresses. */}}
{{- define "marble.ownPostgres" -}}{{ if and .Values.mlflow.enabled (not .Values.database.host) }}yes{{ end }}{{- end }}
{{- define "marble.ownS3" -}}{{ if not .Values.s3.endpoint }}yes{{ end }}{{- end }}

{{- define "marble.databaseHost" -}}
{{- .Values.database.host | default (printf "%s-postgres.%s.svc" (include "marble.fullname" .) .Release.Namespace) -}}
{{- end }}

{{- define "marble.s3Endpoint" -}}
{{- .Values.s3.endpoint | default (printf "http://%s-s3.%s.svc:8333" (include "marble.fullname" .) .Release.Namespace) -}}
{{- end }}

{{- define "marble.mlflowUri" -}}
{{- if .Values.mlflow.enabled -}}
http://{{ include "marble.fullname" . }}-mlflow.{{ .Release.Namespace }}.svc:{{ .Values.mlflow.port }}{{ .Values.mlflow.staticPrefix }}
{{- else -}}{{ .Values.mlflow.uri }}{{- end -}}
{{- end }}

{{/* MLflow refuses any other Host with 403; /health is exempt, so that probes would not see it. Setting this replaces
MLflow's defaults, hence localhost (kubectl port-forward). */}}
{{- define "marble.allowedHosts" -}}
{{- $service := printf "%s-mlflow" (include "marble.fullname" .) -}}
{{- $long := printf "%s.%s.svc" $service .Release.Namespace -}}
{{- $hosts := list -}}
{{- range list $service (printf "%s.%s" $service .Release.Namespace) $long (printf "%s.%s" $long .Values.clusterDomain) -}}
{{- $hosts = concat $hosts (list . (printf "%s:%v" . $.Values.mlflow.port)) -}}
{{- end -}}
{{- $ingress := list -}}
{{- with .Values.mlflow.ingress.host }}{{ $ingress = list . }}{{ end -}}
{{- concat $hosts (list "localhost" "localhost:*" "127.0.0.1" "127.0.0.1:*") $ingress .Values.mlflow.allowedHosts | uniq | join "," -}}
{{- end }}

{{/* The password is libpq's PGPASSWORD, not part of the URI: it needs no quoting, and is in no argument. The driver is
named, because SQLAlchemy 2.1 takes psycopg for a plain postgresql://, which MLflow's image lacks. */}}
{{- define "marble.databaseUri" -}}
{{- $db := .Values.database -}}
postgresql+psycopg2://{{ $db.user }}@{{ include "marble.databaseHost" . }}:{{ $db.port }}/{{ $db.name }}
{{- end }}

{{- define "marble.databaseEnv" -}}
- name: MLFLOW_BACKEND_STORE_URI
  value: {{ include "marble.databaseUri" . | quote }}
- name: PGPASSWORD
  valueFrom: {secretKeyRef: {name: {{ .Values.database.existingSecret }}, key: {{ .Values.database.passwordKey }}}}
- name: PGSSLMODE
  value: {{ .Values.database.sslMode }}
{{- if .Values.database.sslRootSecret }}
- name: PGSSLROOTCERT
  value: /srv/database/ca.crt
{{- end }}
{{- end }}

{{- define "marble.databaseMount" -}}
{{- if .Values.database.sslRootSecret }}
- {name: database, mountPath: /srv/database, readOnly: true}
{{- end }}
{{- end }}

{{- define "marble.databaseVolume" -}}
{{- with .Values.database.sslRootSecret }}
- {name: database, secret: {secretName: {{ . }}, items: [{key: ca.crt, path: ca.crt}]}}
{{- end }}
{{- end }}

{{/* For AWS's own S3 none: with IRSA an address of all services would take the exchange of the token too, so it is S3's alone. */}}
{{- define "marble.s3Address" -}}
{{- if not (regexMatch "[.]amazonaws[.]com(:[0-9]+)?$" .Values.s3.endpoint) }}{{ include "marble.s3Endpoint" . }}{{ end -}}
{{- end }}

{{- define "marble.s3Env" -}}
- name: AWS_ENDPOINT_URL_S3
  value: {{ include "marble.s3Address" . | quote }}
- name: AWS_DEFAULT_REGION
  value: {{ .Values.s3.region }}
{{- with .Values.s3.addressing }}
- name: MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE
  value: {{ . }}
{{- end }}
{{- with .Values.s3.checksums }}
- name: AWS_REQUEST_CHECKSUM_CALCULATION
  value: {{ . }}
- name: AWS_RESPONSE_CHECKSUM_VALIDATION
  value: {{ . }}
{{- end }}
{{- if .Values.s3.authorityConfigMap }}
- name: AWS_CA_BUNDLE
  value: /srv/authority/ca.crt
{{- end }}
{{ include "marble.s3Keys" . }}
{{- end }}

{{- define "marble.s3Keys" -}}
{{- range $key := ternary (list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY") list (ne .Values.s3.existingSecret "") }}
- name: {{ $key }}
  valueFrom: {secretKeyRef: {name: {{ $.Values.s3.existingSecret }}, key: {{ $key }}}}
{{- end }}
{{- end }}
