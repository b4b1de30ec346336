#!/usr/bin/env bash
# Installs what some tests need in addition to Python: Java, Maven, the job server for Spark, a Kafka
# broker, a stand-in for Cloud Storage, a browser.
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

# The job server is made anew where its pom.xml has changed since.
pom=templates/spark/pom.xml
job_servers=${XDG_CACHE_HOME:-$HOME/.cache}/torchbeam/spark-job-server
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
if ! cmp -s examples/stream/pom.xml "${XDG_CACHE_HOME:-$HOME/.cache}/torchbeam/kafka/$kafka/pom.xml"; then
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

if ! { command -v chromium || command -v google-chrome; } >/dev/null; then
  if [ ${#apt[@]} -gt 0 ]; then
    echo 'tests: installing Chromium'
    { "${apt[@]}" update -qq && "${apt[@]}" install -y -qq --no-install-recommends chromium; } </dev/null >/dev/null 2>&1
  fi
  command -v chromium >/dev/null ||
    missing 'the test of the report in a browser' 'there is no chromium on PATH; apt-get install chromium'
fi
exit 0
