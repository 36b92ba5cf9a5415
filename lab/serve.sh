#!/bin/sh
# An MLflow tracking server for a lab: runs and registry in PostgreSQL, artifacts in a folder or
# bucket that clients reach through the server alone. See docs/how-to/lab.md.
set -eu

: "${LAB_DATABASE:?is missing: postgresql://USER@HOST/NAME; give the password in ~/.pgpass or PGPASSWORD}"
: "${LAB_ARTIFACTS:?is missing: a folder of this machine, or s3://BUCKET/PREFIX}"

case "$LAB_DATABASE" in  # without the driver's name SQLAlchemy looks for one that is not installed
postgresql://*) LAB_DATABASE="postgresql+psycopg2://${LAB_DATABASE#postgresql://}" ;;
esac
set -- \
    --backend-store-uri "$LAB_DATABASE" \
    --artifacts-destination "$LAB_ARTIFACTS" \
    --host "${LAB_HOST:-127.0.0.1}" \
    --port "${LAB_PORT:-5000}" \
    --workers "${LAB_WORKERS:-4}" \
    --allowed-hosts "${LAB_NAMES:-localhost:*,127.0.0.1:*}"
if [ -n "${LAB_AUTH:-}" ]; then
    export MLFLOW_AUTH_CONFIG_PATH="${MLFLOW_AUTH_CONFIG_PATH:-$(dirname "$0")/auth.ini}"
    set -- "$@" --app-name basic-auth
fi
# Without the processes for jobs that no run of ours asks for.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
exec mlflow server "$@"
