"""Options of JVMs that live for seconds: without the second compiler and parallel collectors they take half the CPU time."""

SHORT_JOB_SERVER = "--job_server_jvm_properties=-XX:TieredStopAtLevel=1"
SHORT_JVM = {
    "JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
}  # of the launcher, which notes it on stderr
