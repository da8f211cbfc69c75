# shellcheck shell=bash
# Sourced by the steps of action.yml.

# Whether a key can be had: one is given, or this run may have tokens of its own.
has_key() {
  [ -n "$OPTIPFAIR_KEY" ] || { [ -n "$AUDIENCE" ] && [ -n "${ACTIONS_ID_TOKEN_REQUEST_URL:-}" ]; }
}

# Writes curl's settings with the key to $key_file: the one that is given, or a fresh one for a fresh token of this run.
# GitHub's tokens live for minutes, and so do the keys that are had for them: whoever waits longer calls this again.
new_key() {
  local key="$OPTIPFAIR_KEY" token
  if [ -z "$key" ]; then
    token=$(curl -sS --fail --retry 5 -H "Authorization: Bearer $ACTIONS_ID_TOKEN_REQUEST_TOKEN" \
      "$ACTIONS_ID_TOKEN_REQUEST_URL&audience=$AUDIENCE" | jq -er .value) || return 1
    printf '%s' "$token" | curl -sS --retry 5 --retry-connrefused -o "$key_file" \
      --data-urlencode grant_type=urn:ietf:params:oauth:grant-type:token-exchange \
      --data-urlencode subject_token_type=urn:ietf:params:oauth:token-type:jwt \
      --data-urlencode subject_token@- "${OPTIPFAIR_URL%/}/v1/token" || return 1
    key=$(jq -er .access_token "$key_file") || {
      echo "::error title=OptiPFair::No key for this run's token: $(jq -r '.error_description // empty' "$key_file")"
      return 1
    }
    echo "::add-mask::$key"
  fi
  printf 'header = "Authorization: Bearer %s"\n' "$key" > "$key_file"
}
