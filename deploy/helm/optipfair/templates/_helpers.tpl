{{- define "optipfair.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "optipfair.selector" -}}
app.kubernetes.io/name: optipfair
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "optipfair.labels" -}}
{{ include "optipfair.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "optipfair.image" -}}
{{- if .image.digest }}{{ .image.repository }}@{{ .image.digest }}{{ else }}{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "optipfair.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "optipfair.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{/* Who a pod is: nobody of the host's, without privileges, its own root file system read-only. */}}
{{- define "optipfair.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "optipfair.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What every process is told; secrets are files of the mounted Secret. */}}
{{- define "optipfair.environment" -}}
{{- $keys := .Values.secret.keys -}}
{{- $asleep := list -}}
{{- range $name, $pool := .Values.workers }}{{ if and $pool.enabled (dig "sleeping" "enabled" false $pool) }}{{ $asleep = concat $asleep $pool.queues }}{{ end }}{{ end -}}
{{- $given := dict "OPTIPFAIR_ARTIFACTS_URL" .Values.artifacts.url "OPTIPFAIR_ARTIFACTS_S3_REGION" .Values.artifacts.region -}}
{{- if .Values.artifacts.endpoint }}{{ $_ := set $given "OPTIPFAIR_ARTIFACTS_S3_ENDPOINT" .Values.artifacts.endpoint }}{{ end -}}
{{- if $keys.databaseUrl }}{{ $_ := set $given "OPTIPFAIR_DATABASE_URL_FILE" (printf "/secrets/%s" $keys.databaseUrl) }}{{ else }}{{ $_ := set $given "OPTIPFAIR_DATABASE_URL" (required "database.url, or secret.keys.databaseUrl" .Values.database.url) }}{{ end -}}
{{- if $keys.databasePassword }}{{ $_ := set $given "OPTIPFAIR_DATABASE_PASSWORD_FILE" (printf "/secrets/%s" $keys.databasePassword) }}{{ end -}}
{{- if $keys.brokerUrl }}{{ $_ := set $given "OPTIPFAIR_BROKER_URL_FILE" (printf "/secrets/%s" $keys.brokerUrl) }}{{ else }}{{ $_ := set $given "OPTIPFAIR_BROKER_URL" (required "broker.url, or secret.keys.brokerUrl" .Values.broker.url) }}{{ end -}}
{{- if $keys.s3AccessKey }}{{ $_ := set $given "OPTIPFAIR_ARTIFACTS_S3_ACCESS_KEY_FILE" (printf "/secrets/%s" $keys.s3AccessKey) }}{{ end -}}
{{- if $keys.s3SecretKey }}{{ $_ := set $given "OPTIPFAIR_ARTIFACTS_S3_SECRET_KEY_FILE" (printf "/secrets/%s" $keys.s3SecretKey) }}{{ end -}}
{{- if $asleep }}{{ $_ := set $given "OPTIPFAIR_SLEEPING_QUEUES" (join "," (uniq $asleep)) }}{{ end -}}
{{- range $name, $value := .Values.settings }}{{ $_ := set $given (printf "OPTIPFAIR_%s" (upper $name)) (kindIs "string" $value | ternary $value (toJson $value)) }}{{ end -}}
{{- range $name, $value := $given }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{/* The keys of the Secret that a process may read: only the API gets the one that signs. */}}
{{- define "optipfair.secretVolume" -}}
{{- $keys := .root.Values.secret.keys -}}
{{- $wanted := list $keys.databasePassword $keys.databaseUrl $keys.brokerUrl $keys.s3AccessKey $keys.s3SecretKey | compact -}}
{{- if .signs }}{{ $wanted = prepend $wanted $keys.secret }}{{ end -}}
{{- if $wanted -}}
name: secrets
secret:
  secretName: {{ required "secret.name, the Secret that you have made" .root.Values.secret.name }}
  defaultMode: 0400
  items:
    {{- range $wanted }}
    - {key: {{ . }}, path: {{ . }}}
    {{- end }}
{{- else -}}
name: secrets
emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{- end }}
{{- end }}

{{- define "optipfair.worker" -}}
{{- $root := .root }}{{ $pool := .pool -}}
metadata:
  labels:
    {{- include "optipfair.labels" (dict "root" $root "component" (printf "worker-%s" .name)) | nindent 4 }}
    optipfair/role: worker
  {{- with $root.Values.podAnnotations }}
  annotations: {{ toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "optipfair.serviceAccount" $root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets: {{ toYaml . | nindent 4 }}
  {{- end }}
  # It gives the running attempt grace_seconds (20), then puts the job back.
  terminationGracePeriodSeconds: 60
  {{- if .once }}
  restartPolicy: Never
  {{- end }}
  securityContext: {{ include "optipfair.podSecurity" $root | nindent 4 }}
  containers:
    - name: worker
      image: {{ include "optipfair.image" (dict "root" $root "image" $root.Values.image.worker) }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args: {{ concat (list "optipfair-service" "worker" "--queues" (join "," $pool.queues) "--device" $pool.device) .once | toJson }}
      env: {{ include "optipfair.environment" $root | nindent 8 }}
      securityContext: {{ include "optipfair.containerSecurity" $root | nindent 8 }}
      resources: {{ toYaml $pool.resources | nindent 8 }}
      {{- if not .once }}
      # The worker touches this file whenever it has told the database that it lives, every ten seconds.
      livenessProbe:
        exec: {command: [sh, -c, test -n "$(find /data/work/alive -mmin -2)"]}
        initialDelaySeconds: 180
        periodSeconds: 30
        timeoutSeconds: 5
        failureThreshold: 4
      {{- end }}
      volumeMounts:
        - {name: secrets, mountPath: /secrets, readOnly: true}
        - {name: work, mountPath: /data}
        - {name: tmp, mountPath: /tmp}
        - {name: home, mountPath: /home/optipfair}
        {{- range $folder, $path := dict "models" "/models" "calibration" "/data/calibration" "suites" "/data/suites" }}
        {{- with index $root.Values.volumes $folder }}{{ if .claim }}
        - {name: {{ $folder }}, mountPath: {{ $path }}, readOnly: true{{ with .subPath }}, subPath: {{ . | quote }}{{ end }}}
        {{- end }}{{ end }}
        {{- end }}
  volumes:
    - {{ include "optipfair.secretVolume" (dict "root" $root "signs" false) | nindent 6 | trim }}
    - name: work
      {{- if $pool.workVolume.storageClass }}
      ephemeral:
        volumeClaimTemplate:
          spec:
            accessModes: [ReadWriteOnce]
            storageClassName: {{ $pool.workVolume.storageClass }}
            resources: {requests: {storage: {{ $pool.workVolume.size }}}}
      {{- else }}
      emptyDir: {sizeLimit: {{ $pool.workVolume.size }}}
      {{- end }}
    - {name: tmp, emptyDir: {sizeLimit: 2Gi}}
    - {name: home, emptyDir: {sizeLimit: 1Gi}}
    {{- range $folder := list "models" "calibration" "suites" }}
    {{- with (index $root.Values.volumes $folder).claim }}
    - {name: {{ $folder }}, persistentVolumeClaim: {claimName: {{ . }}, readOnly: true}}
    {{- end }}
    {{- end }}
  {{- range $field := list "nodeSelector" "tolerations" "affinity" }}
  {{- with index $pool $field }}
  {{ $field }}: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
{{- end }}
