package torchbeam.example;

import java.io.IOException;
import java.net.ServerSocket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.nio.file.StandardOpenOption;
import java.util.List;
import java.util.UUID;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.apache.beam.fn.harness.ExternalWorkerService;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.StartWorkerRequest;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.StartWorkerResponse;
import org.apache.beam.sdk.Pipeline;
import org.apache.beam.sdk.PipelineResult;
import org.apache.beam.sdk.extensions.python.PythonExternalTransform;
import org.apache.beam.sdk.fn.server.GrpcFnServer;
import org.apache.beam.sdk.options.Description;
import org.apache.beam.sdk.options.PipelineOptionsFactory;
import org.apache.beam.sdk.options.PortablePipelineOptions;
import org.apache.beam.sdk.options.Validation;
import org.apache.beam.sdk.schemas.Schema;
import org.apache.beam.sdk.transforms.Create;
import org.apache.beam.sdk.transforms.DoFn;
import org.apache.beam.sdk.transforms.ParDo;
import org.apache.beam.sdk.values.PCollection;
import org.apache.beam.sdk.values.PCollectionTuple;
import org.apache.beam.sdk.values.Row;
import org.apache.beam.vendor.grpc.v1p60p1.io.grpc.stub.StreamObserver;
import org.joda.time.Duration;

/**
 * Scores rows of a Java pipeline with a PyTorch model, by the transform torchbeam.TorchScore of a Python expansion service.
 */
public class ScoreFromJava {

  /** The rows: the columns of the model, and an identifier. */
  static final Schema ROWS =
      Schema.builder()
          .addInt64Field("id")
          .addNullableField("a", Schema.FieldType.DOUBLE)
          .addDoubleField("b")
          .addStringField("name")
          .build();

  static final Schema ERROR_HANDLING = Schema.builder().addStringField("output").build();

  /** What the command line gives, beside the options of Beam. */
  public interface Options extends PortablePipelineOptions {
    @Description("model directory, or a name of the registry such as credit@champion")
    @Validation.Required
    String getModel();

    void setModel(String model);

    @Description("text file of rows: id,a,b,name, with nothing for a null")
    @Validation.Required
    String getInput();

    void setInput(String input);

    @Description("existing folder for the results")
    @Validation.Required
    String getOutput();

    void setOutput(String output);

    @Description("HOST:PORT of the Python expansion service")
    @Validation.Required
    String getExpansionService();

    void setExpansionService(String expansionService);

    @Description("minutes after which the job is given up: a worker that died would let it wait for ever")
    Integer getGiveUpMinutes();

    void setGiveUpMinutes(Integer minutes);
  }

  public static void main(String[] args) throws Exception {
    String[] all = Stream.concat(Stream.of("--runner=PortableRunner"), Stream.of(args)).toArray(String[]::new);
    Options options = PipelineOptionsFactory.fromArgs(all).withValidation().as(Options.class);
    // The workers of the Java part are threads of this process. Beam's LOOPBACK does the same, but it fails while the Python
    // transform is expanded.
    try (GrpcFnServer<ExternalWorkerService> workers = new Workers().start()) {
      options.setDefaultEnvironmentType("EXTERNAL");
      options.setDefaultEnvironmentConfig(workers.getApiServiceDescriptor().getUrl());
      PipelineResult result = pipeline(options).run();
      int minutes = options.getGiveUpMinutes() == null ? 60 : options.getGiveUpMinutes();
      PipelineResult.State state = result.waitUntilFinish(Duration.standardMinutes(minutes));
      System.out.println("The job ended as " + state);
      // Threads of gRPC would keep the process.
      System.exit(state == PipelineResult.State.DONE ? 0 : 1);
    }
  }

  /** Starts workers. Each has options of its own: the end of a worker shuts down the executor that its options have. */
  static class Workers extends ExternalWorkerService {
    Workers() {
      super(PipelineOptionsFactory.create());
    }

    @Override
    public void startWorker(StartWorkerRequest request, StreamObserver<StartWorkerResponse> response) {
      new ExternalWorkerService(PipelineOptionsFactory.create()).startWorker(request, response);
    }
  }

  static Pipeline pipeline(Options options) throws IOException {
    Pipeline pipeline = Pipeline.create(options);
    List<Row> rows =
        Files.readAllLines(Paths.get(options.getInput())).stream()
            .map(ScoreFromJava::row)
            .collect(Collectors.toList());
    PCollection<Row> input = pipeline.apply("Rows", Create.of(rows).withRowSchema(ROWS));
    PCollectionTuple outputs =
        input.apply(
            "TorchScore",
            PythonExternalTransform.<PCollection<Row>, PCollectionTuple>from(
                    "torchbeam.TorchScore", options.getExpansionService())
                .withKwarg("model", options.getModel())
                .withKwarg(
                    "error_handling", Row.withSchema(ERROR_HANDLING).addValue("errors").build()));
    Path folder = Paths.get(options.getOutput());
    rows(outputs, "good").apply("WriteGood", ParDo.of(new Write(folder + "/good")));
    rows(outputs, "errors").apply("WriteErrors", ParDo.of(new Write(folder + "/errors")));
    return pipeline;
  }

  @SuppressWarnings("unchecked")
  private static PCollection<Row> rows(PCollectionTuple outputs, String name) {
    return (PCollection<Row>)
        outputs.getAll().entrySet().stream()
            .filter(output -> output.getKey().getId().equals(name))
            .findFirst()
            .orElseThrow(() -> new IllegalStateException("no output " + name))
            .getValue();
  }

  private static Row row(String line) {
    String[] values = line.split(",", -1);
    return Row.withSchema(ROWS)
        .addValues(
            Long.valueOf(values[0]),
            values[1].isEmpty() ? null : Double.valueOf(values[1]),
            Double.valueOf(values[2]),
            values[3])
        .build();
  }

  /** Writes the rows of a bundle, one a line, to a file of their own; a real pipeline has a sink of Beam here. */
  static class Write extends DoFn<Row, Void> {
    private final String prefix;
    private transient StringBuilder lines;

    Write(String prefix) {
      this.prefix = prefix;
    }

    @StartBundle
    public void startBundle() {
      lines = new StringBuilder();
    }

    @ProcessElement
    public void process(@Element Row row) {
      lines.append(json(row)).append('\n');
    }

    @FinishBundle
    public void finishBundle() throws IOException {
      if (lines.length() > 0) {
        Path file = Paths.get(prefix + "-" + UUID.randomUUID() + ".jsonl");
        Files.write(file, lines.toString().getBytes(StandardCharsets.UTF_8), StandardOpenOption.CREATE_NEW);
      }
    }
  }

  /** A row as JSON, nested rows too. */
  static String json(Object value) {
    if (value instanceof Row) {
      Row row = (Row) value;
      return row.getSchema().getFields().stream()
          .map(field -> json(field.getName()) + ": " + json(row.getValue(field.getName())))
          .collect(Collectors.joining(", ", "{", "}"));
    }
    if (value instanceof CharSequence) {
      return "\"" + value.toString().replace("\\", "\\\\").replace("\"", "\\\"").replace("\n", "\\n") + "\"";
    }
    return String.valueOf(value);
  }
}
