"""What tests of processes that die run in them: in a file of its own, so that they import nothing else."""

import os
import time


class Mortal:
    def die(self):
        os._exit(3)

    def double(self, number):
        return 2 * number

    def wait(self):
        time.sleep(60)
