# The commands and the app with an NVIDIA GPU. Build: docker build -t lora-rlhf .  How to run: README.md, "In a container".
# PyTorch brings its own CUDA libraries; the host needs the NVIDIA driver and its container toolkit alone.
FROM python:3.11-slim

# bitsandbytes and Triton compile small launchers when a GPU is first used
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/lora-rlhf
COPY pyproject.toml constraints.txt LICENSE README.md ./
COPY lora_rlhf lora_rlhf
COPY demo demo
COPY configs configs
RUN pip install --no-cache-dir --constraint constraints.txt ".[demo]"

# Files in the volumes belong to this user. --build-arg USER_ID=$(id -u) makes it yours.
ARG USER_ID=1000
RUN useradd --create-home --uid "$USER_ID" trainer \
    && mkdir --parents /rlhf/runs /rlhf/models \
    && chown --recursive trainer /rlhf
USER trainer
ENV HF_HOME=/rlhf/models
WORKDIR /rlhf
VOLUME ["/rlhf/runs", "/rlhf/models"]
EXPOSE 7860

ENTRYPOINT ["lora-rlhf"]
CMD ["doctor"]
