"""The engine `openvino`: GGUF files, run by OpenVINO GenAI."""
