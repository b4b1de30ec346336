#!/usr/bin/env bash
# Installs what some tests need in addition to Python: Java, Maven and the job server for Spark, a Kafka broker, stand-ins for
# Cloud Storage and Pub/Sub, the Prism runner, a browser.
# What cannot be had is said in one line each; the tests that need it skip. Packages of the system are installed by root,
# and in continuous integration (CI=true) by sudo where that asks for no password.
set -uo pipefail
cd "$(dirname "$0")/.."

missing() {
  echo "tests: $1 will be skipped: $2"
}

apt=()
if command -v apt-get >/dev/null; then
  if [ "$(id -u)" = 0 ]; then
    apt=(env DEBIAN_FRONTEND=noninteractive apt-get)
  elif [ "${CI:-}" = true ] && sudo -n true 2>/dev/null; then
    apt=(sudo -n DEBIAN_FRONTEND=noninteractive apt-get)
  fi
fi

install_java() {
  echo 'tests: installing Java and Maven'
  # Java 17 where the distribution has it: Spark 3.5 takes no later one.
  {
    "${apt[@]}" update -qq
    "${apt[@]}" install -y -qq --no-install-recommends openjdk-17-jdk-headless maven ||
      "${apt[@]}" install -y -qq --no-install-recommends default-jdk-headless maven
  } </dev/null >/dev/null 2>&1
}

java_and_maven() { { command -v java && command -v mvn; } >/dev/null; }
java_and_maven || { [ ${#apt[@]} -gt 0 ] && install_java; }

cache=${XDG_CACHE_HOME:-$HOME/.cache}/torchbeam

# The job server is made anew where its pom.xml has changed since.
pom=templates/spark/pom.xml
job_servers=$cache/spark-job-server
version=$(sed -n 's:.*<\(beam\|spark\).version>\(.*\)</.*:\1-\2:p' $pom | paste -sd-)
if ! cmp -s $pom "$job_servers/$version.pom.xml"; then
  if java_and_maven; then
    make --no-print-directory spark-job-server </dev/null 2>&1 ||
      missing 'tests on Spark' 'the job server could not be built; see what `make spark-job-server` says'
  else
    missing 'tests on Spark' 'there is no java or no mvn on PATH; apt-get install openjdk-17-jdk-headless maven'
  fi
elif ! command -v java >/dev/null; then
  missing 'tests on Spark' 'there is no java on PATH; apt-get install openjdk-17-jdk-headless'
fi

kafka=$(sed -n 's:.*<kafka.version>\(.*\)</.*:\1:p' examples/stream/pom.xml)
if ! cmp -s examples/stream/pom.xml "$cache/kafka/$kafka/pom.xml"; then
  if java_and_maven; then
    make --no-print-directory kafka </dev/null 2>&1 ||
      missing 'tests on Kafka' 'its jars could not be fetched; see what `make kafka` says'
  else
    missing 'tests on Kafka' 'there is no java or no mvn on PATH; apt-get install openjdk-17-jdk-headless maven'
  fi
elif ! command -v java >/dev/null; then
  missing 'tests on Kafka' 'there is no java on PATH; apt-get install openjdk-17-jdk-headless'
fi

gcs=github.com/fsouza/fake-gcs-server@v1.56.1
if ! command -v fake-gcs-server >/dev/null; then
  if ! command -v go >/dev/null; then
    missing 'tests on gs://' "there is no fake-gcs-server and no go on PATH; install Go, then: go install $gcs"
  elif ! [ -x "$(go env GOPATH)/bin/fake-gcs-server" ]; then
    echo 'tests: building fake-gcs-server'
    timeout 300 go install $gcs </dev/null >/dev/null 2>&1 ||
      missing 'tests on gs://' "fake-gcs-server could not be built; see what \`go install $gcs\` says"
  fi
fi

# An in-memory Pub/Sub: Google's own pstest, made anew where its versions have changed since.
pubsub=tests/emulators/pubsub
if ! cmp -s $pubsub/go.mod "$cache/pubsub-emulator.mod"; then
  if command -v go >/dev/null; then
    echo 'tests: building the stand-in for Pub/Sub'
    { mkdir -p "$cache" && (cd $pubsub && timeout 300 go build -o "$cache/pubsub-emulator.$$" .) &&
      mv "$cache/pubsub-emulator.$$" "$cache/pubsub-emulator" && cp $pubsub/go.mod "$cache/pubsub-emulator.mod"; } \
      </dev/null >/dev/null 2>&1 ||
      missing 'tests on pubsub://' "it could not be built; see what \`go build\` says in $pubsub"
  else
    missing 'tests on pubsub://' 'there is no go on PATH'
  fi
fi

beam=$(sed -n 's/^apache-beam==\([0-9.]*\).*/\1/p' requirements.lock)
if ! { command -v prism || [ -x "$cache/prism/$beam/prism" ]; } >/dev/null; then
  if command -v go >/dev/null; then
    timeout 900 make --no-print-directory prism </dev/null 2>&1 ||
      missing 'tests on Prism' 'it could not be built; see what `make prism` says'
  else
    missing 'tests on Prism' 'there is no go on PATH'
  fi
fi

if ! { command -v chromium || command -v google-chrome; } >/dev/null; then
  if [ ${#apt[@]} -gt 0 ]; then
    echo 'tests: installing Chromium'
    { "${apt[@]}" update -qq && "${apt[@]}" install -y -qq --no-install-recommends chromium; } </dev/null >/dev/null 2>&1
  fi
  command -v chromium >/dev/null ||
    missing 'the test of the report in a browser' 'there is no chromium on PATH; apt-get install chromium'
fi
exit 0
