"""The `recon` command."""


def main() -> None: ...
