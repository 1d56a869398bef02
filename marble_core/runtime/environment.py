"""The environment variables of our own, each with one line on what it is. The standard ones (AWS_*, MLFLOW_*, HF_*) keep their names."""

PROGRESS = "MARBLE_PROGRESS"  # the file that a stage appends its progress events to
OVERRIDES = "MARBLE_OVERRIDES"  # the file, of this user alone, in which marble run hands its overrides to prepare
STUDY = "MARBLE_STUDY"  # the file, of this user alone, in which marble study hands its study to the stages
PIPELINE_VERSION = "MARBLE_PIPELINE_VERSION"  # of MARBLE, with which the pipeline file was compiled
PIPELINE_FORMAT = "MARBLE_PIPELINE_FORMAT"  # the version of the compiled pipeline, see config/formats.py
LIMITS = "MARBLE_LIMITS"  # JSON, which pipelines/pods.py writes: the limits of the pods of train and evaluate that a settings file gives
NODES = "MARBLE_NODES"  # JSON, which pipelines/pods.py writes: what a TrainJob's pods get that the stage's pod has
KFP_RUN = "MARBLE_KFP_RUN"  # the id of the run in Kubeflow Pipelines; as a label it says which jobs a run has left behind
KUBEFLOW_PAGE = "MARBLE_KUBEFLOW_PAGE"  # the address of Kubeflow's pages for people, up to the #
MLFLOW_PAGE = "MARBLE_MLFLOW_PAGE"  # and of MLflow's, where stages know the server by a name of the cluster's own
GIT_COMMIT = "MARBLE_GIT_COMMIT"  # the commit that an image was built from
S3_DIRECTORY = "MARBLE_S3_DIRECTORY"  # where the S3 server that a marble command started on this machine keeps its data
MLFLOW_DIRECTORY = "MARBLE_MLFLOW_DIRECTORY"  # and where the MLflow server does
AGAIN = "MARBLE_AGAIN"  # JSON, which pipelines/pods.py writes: how often a stage's work is started again, see runtime/again.py
ATTEMPT = "MARBLE_ATTEMPT"  # of the work: which attempt it is, and why the one before ended
FAILURE = "MARBLE_FAILURE"  # the file in which the work says why it ends
CA = "MARBLE_CA"  # a file of private roots (PEM), trusted beside the public ones by all clients: runtime/certificates.py
GPUS_SINCE = "MARBLE_GPUS_SINCE"  # seconds since the epoch: from when the GPU hours of a stage's attempt count, see tracking/gpu_hours.py
PARENT = "MARBLE_PARENT"  # the process id of torchrun, for its processes: runtime/child_process.py
IMAGE = "MARBLE_IMAGE"  # a stage's image with its digest
WEBHOOK = "MARBLE_WEBHOOK"  # the address that notices go to, a secret: tracking/notices.py
S3_ADDRESSING = (
    "MARBLE_S3_ADDRESSING"  # path, virtual or auto: how buckets are named, where no AWS file can say it, as in a pod
)
