"""``python -m swimmy.agent``: what the Pod's container runs."""

import sys

from swimmy.agent.server import Agent, settings_from_environment

if __name__ == "__main__":
    sys.exit(Agent(settings_from_environment()).serve())
