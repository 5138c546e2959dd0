import raskid


def square(x):
    return x * x


with raskid.connect("local://?runners=2") as rk:
    squares = [rk.submit(square, n) for n in range(10)]  # futures; the work is done by other processes
    total = rk.submit(sum, squares)  # starts when its inputs are there
    print(total.result())

    with rk.subscribe("mesh/ready") as messages:  # any process of the system can publish
        rk.publish("mesh/ready", step=3, shape=[256, 256])
        print(messages.get(timeout=5)["step"])
