"""The certificates and kubeconfig files of a test cluster, made with the openssl command."""

from __future__ import annotations

import json
import secrets
import subprocess
from pathlib import Path

NODE_ADDRESS = "10.77.0.1"


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Authority:
    """Signs what the cluster's parts prove themselves with; good for two days. A folder that holds one is gone on with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if (folder / "service-account.pub").exists():
            return
        folder.mkdir(parents=True)
        _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                 "-subj", "/CN=test-cluster", "-keyout", folder / "ca.key", "-out", folder / "ca.crt")  # fmt: skip
        _openssl("genrsa", "-out", folder / "service-account.key", "2048")
        _openssl("rsa", "-in", folder / "service-account.key", "-pubout", "-out", folder / "service-account.pub")

    def issue(self, name: str, subject: str, *alternative: str) -> None:
        extension = self.folder / f"{name}.ext"
        lines = ["keyUsage=digitalSignature,keyEncipherment", "extendedKeyUsage=clientAuth,serverAuth"]
        if alternative:
            lines.append("subjectAltName=" + ",".join(alternative))
        extension.write_text("\n".join(lines))
        base = self.folder / name
        _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", subject,
                 "-keyout", f"{base}.key", "-out", f"{base}.csr")  # fmt: skip
        _openssl("x509", "-req", "-in", f"{base}.csr", "-CA", self.folder / "ca.crt", "-CAkey", self.folder / "ca.key",
                 "-set_serial", f"0x{secrets.token_hex(8)}", "-days", "2", "-extfile", extension,
                 "-out", f"{base}.crt")  # fmt: skip

    def kubeconfig(self, name: str, subject: str) -> Path:
        """A kubeconfig (JSON, which is YAML too) for a client of that subject, its certificates written into it."""
        self.issue(name, subject)
        path = self.folder / f"{name}.kubeconfig"
        server = {"server": "https://127.0.0.1", "certificate-authority": str(self.folder / "ca.crt")}
        user = {
            "client-certificate": str(self.folder / f"{name}.crt"),
            "client-key": str(self.folder / f"{name}.key"),
        }
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "test", "cluster": server}],
                    "users": [{"name": name, "user": user}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
                    "current-context": "test",
                }
            )
        )
        return path
